//! The promises, judged by what the store holds and what the ledger says: never by the operator's own words alone.

use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use moneygo_operator::crd::annotation;
use serde_json::{Value, json};

use crate::moneygo::Answer;
use crate::schedule::Renew;
use crate::store::{Kind, Refusal, metadata_of};
use crate::time::{self, DAY, Millis, SECOND};
use crate::wire::Call;
use crate::world::{World, client_id, credentials_name, object_name, object_of, target_name, text_of};

/// What every client secret and every token has in it.
const CANARY: &str = "canary";
/// The same in base64, at each of the three places that it can begin at.
const CANARY_IN_BASE64: [&str; 3] = ["Y2FuYXJ5", "NhbmFye", "jYW5hcn"];
/// Of a client that is refused.
const POSTS_A_DAY: usize = 24;

/// Whether a text holds a client secret or a token.
#[must_use]
pub fn tells_a_secret(text: &str) -> bool {
    text.contains(CANARY) || CANARY_IN_BASE64.iter().any(|canary| text.contains(canary))
}

/// Checks a request before it is carried out.
pub fn look_at_request(world: &mut World, node: usize, call: &Call, path: &str) {
    let now = time::now(node);
    let mut shown = call.body.clone();
    if call.kind == Kind::Secret
        && let Some(secret) = shown.as_object_mut()
    {
        secret.remove("data");
    }
    if tells_a_secret(path) || tells_a_secret(&shown.to_string()) {
        world.violate("no secret in a request but in a Secret's data", now, call.text());
    }
    let states = |field: &str| call.body["metadata"][field].as_str().is_some_and(|value| !value.is_empty());
    let unconditional = match call.method {
        Method::PUT if call.kind == Kind::Credential => !states("resourceVersion") || !states("uid"),
        Method::PUT => !states("resourceVersion"),
        _ => false,
    };
    if unconditional {
        world.violate("every write is conditional", now, call.text());
    }
    if call.method == Method::DELETE {
        world.violate("nothing is deleted", now, call.text());
    }
}

/// Carries a request out as an API server would, and checks what it does.
///
/// # Errors
/// As the API server refuses.
pub fn carry_out(world: &mut World, node: usize, call: &Call, now: Millis) -> Result<Value, Refusal> {
    if call.kind != Kind::Lease && call.watch_from.is_none() && (call.name.is_some() || call.method != Method::GET) {
        world.touches += 1;
    }
    match (&call.method, &call.name) {
        (&Method::GET, Some(name)) => {
            let found = world.store.get(call.kind, name).ok_or(Refusal { code: 404, reason: "NotFound" })?;
            Ok(if call.is_metadata { metadata_of(found) } else { Value::clone(found) })
        }
        (&Method::GET, None) if call.watch_from.is_some() => Ok(Value::Null),
        (&Method::GET, None) => Ok(list(world, call)),
        (&Method::POST | &Method::PATCH, _) if call.kind == Kind::Event => Ok(call.body.clone()),
        (&Method::POST, None) => {
            let name = crate::store::name(&call.body).to_owned();
            let body = in_namespace(call);
            let made = world.store.create((call.kind, name.clone()), body, &call.manager, now)?;
            judge_write(world, node, call, &name, None, &made, now);
            Ok(Value::clone(&made))
        }
        (&Method::PUT, Some(name)) if call.kind != Kind::Credential => {
            let before = world.store.get(call.kind, name).cloned();
            let made = world.store.replace((call.kind, name.clone()), in_namespace(call), &call.manager, now)?;
            judge_write(world, node, call, name, before.as_ref(), &made, now);
            Ok(Value::clone(&made))
        }
        (&Method::PUT, Some(name)) if call.is_status => {
            let before = world.store.get(call.kind, name).cloned();
            let made = world.store.replace_status((call.kind, name.clone()), &call.body, now)?;
            judge_write(world, node, call, name, before.as_ref(), &made, now);
            judge_status(world, name, &made, now);
            Ok(Value::clone(&made))
        }
        _ => {
            world.violate("only what is known is asked", now, call.text());
            Err(Refusal { code: 405, reason: "MethodNotAllowed" })
        }
    }
}

fn in_namespace(call: &Call) -> Value {
    let mut body = call.body.clone();
    if let Some(namespace) = &call.namespace {
        body["metadata"]["namespace"] = namespace.as_str().into();
    }
    body
}

fn list(world: &World, call: &Call) -> Value {
    let found = world.store.list(call.kind, call.namespace.as_deref());
    let items: Vec<Value> =
        found.map(|object| if call.is_metadata { metadata_of(object) } else { Value::clone(object) }).collect();
    let (version, kind) =
        if call.is_metadata { ("meta.k8s.io/v1", "PartialObjectMetadata") } else { call.kind.names() };
    json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": world.store.revision().to_string()}, "items": items})
}

fn judge_write(
    world: &mut World,
    node: usize,
    call: &Call,
    name: &str,
    before: Option<&Arc<Value>>,
    after: &Arc<Value>,
    now: Millis,
) {
    if call.kind == Kind::Lease {
        return;
    }
    let is_same =
        before.is_some_and(|before| before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]);
    // A write whose answer was lost may be made again.
    if is_same && object_of(name).is_some_and(|object| world.clean_since(object, now, true).is_some()) {
        world.violate("every write changes something", now, call.text());
    }
    let Some(object) = object_of(name).filter(|_| call.kind == Kind::Secret) else { return };
    if name != target_name(object) {
        world.violate("a Secret that is not ours is not touched", now, call.text());
        return;
    }
    if before.is_some_and(|before| !is_ours(before, object)) {
        world.violate("a Secret that is not ours is not touched", now, call.text());
    }
    judge_token(world, node, call, object, before, after, now);
}

fn is_ours(secret: &Value, object: usize) -> bool {
    let meta = &secret["metadata"];
    let owned = meta["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    meta["annotations"][annotation::ADOPT].as_str() == Some(&object_name(object)) || owned
}

fn judge_token(
    world: &mut World,
    node: usize,
    call: &Call,
    object: usize,
    before: Option<&Arc<Value>>,
    after: &Value,
    now: Millis,
) {
    let token = stored_token(after);
    let grant =
        token.as_deref().and_then(|token| world.provider.grant_of(token)).filter(|it| it.client == client_id(object));
    let Some(grant) = grant.cloned() else {
        world.violate("what is written is a token", now, call.text());
        return;
    };
    let annotations = &after["metadata"]["annotations"];
    let expires = annotations[annotation::EXPIRES_AT].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let is_new = before.and_then(|before| stored_token(before)) != token;
    let claimed = expires.map_or(i64::MAX, time::true_time).saturating_sub(time::wrong_by(node));
    let truth = signed(grant.expires);
    let steady = world.clocks_steady_since(grant.issued.saturating_sub(60 * SECOND));
    if is_new && steady && claimed > truth {
        world.violate(
            "no token is said to live longer than it does",
            now,
            format!("{}: by {} ms", call.text(), claimed - truth),
        );
    }
    // A process that was frozen just before it wrote could not know.
    if is_new && now >= grant.expires && world.clean_since(object, now, true).is_some() {
        world.violate("no expired token is written", now, call.text());
    }
}

fn signed(at: Millis) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// A status that says that the token is there must come after the token.
fn judge_status(world: &mut World, name: &str, after: &Value, now: Millis) {
    let Some(object) = object_of(name) else { return };
    if ready(after) != Some("True") || world.clean_since(object, now, false).is_none() {
        return;
    }
    let secret = world.store.get(Kind::Secret, &target_name(object));
    let time = |text: &Value| text.as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let stored = secret.and_then(|secret| time(&secret["metadata"]["annotations"][annotation::ISSUED_AT]));
    let said = time(&after["status"]["issuedAt"]);
    if stored.is_none() || said > stored {
        world.violate(
            "the Secret is written before the status",
            now,
            format!("{name}: says {said:?}, stored {stored:?}"),
        );
    }
}

/// Before a token request is answered.
pub fn look_at_post(world: &mut World, node: usize, client: &str, now: Millis) {
    world.has_asked(node, client, now);
    let Some(object) = client.strip_prefix("client-").and_then(|number| number.parse().ok()) else { return };
    let name = target_name(object);
    let is_foreign = world.store.get(Kind::Secret, &name).is_some_and(|secret| !is_ours(secret, object));
    if is_foreign && world.clean_since(object, now, true).is_some() {
        world.violate("no token is asked for on a foreign Secret's account", now, client.to_owned());
    }
}

/// After a token request was decided.
pub fn look_at_grant(world: &mut World, client: &str, is_granted: bool, now: Millis) {
    if is_granted {
        return;
    }
    let refused = world.provider.clients.get(client).map(|known| known.refused.as_slice()).unwrap_or_default();
    let of_day = refused.iter().filter(|at| **at + DAY > now).count();
    // Two replicas may each ask once more than one would.
    let strikes = usize::try_from(world.counts.crashes + world.counts.freezes).unwrap_or(0);
    if of_day > POSTS_A_DAY + strikes {
        world.violate("a refused client is asked for at most 24 times a day", now, format!("{client}: {of_day}"));
    }
}

/// An answer has come to a process that lives.
pub fn delivered(world: &mut World, client: &str, answer: &Answer) {
    if let Some(grant) = world.provider.grants.get_mut(answer.grant) {
        grant.delivered = true;
    }
    if let Some(object) = client.strip_prefix("client-").and_then(|number| number.parse::<usize>().ok()) {
        world.delivered(object);
    }
}

/// The token that a target holds, under the key that it was written to.
fn stored_token(secret: &Value) -> Option<String> {
    text_of(&secret["data"][token_key(secret)])
}

/// Under which key a target holds its token.
#[must_use]
pub fn token_key(secret: &Value) -> String {
    let applied = secret["metadata"]["annotations"][annotation::APPLIED].as_str();
    let keys = applied.and_then(|json| serde_json::from_str::<Value>(json).ok()).unwrap_or_default();
    keys["token"].as_str().unwrap_or("access_token").to_owned()
}

fn ready(credential: &Value) -> Option<&str> {
    let conditions = credential["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == "Ready")?["status"].as_str()
}

/// What is wrong with an object's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// There is no target, or nothing in it.
    Missing,
    /// What it holds was never granted to this client.
    Unknown,
    /// It has expired.
    Expired,
    /// A later grant revoked it.
    Revoked,
}

/// What is known of an object's token.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    flaw: Option<(Flaw, Millis)>,
    ready_while_flawed: Option<Millis>,
}

impl Watched {
    /// At the start.
    pub const NEW: Self = Self { flaw: None, ready_while_flawed: None };
}

/// For the ways of a request or two, and steps of the nodes.
#[must_use]
pub fn patience(world: &World) -> Millis {
    // Such a provider's `expires_in` is 0 in a token's last second, which counts as a bad answer.
    let same_again = if world.setting.mode == crate::schedule::Mode::SameAgain { 7 * SECOND } else { 0 };
    3 * SECOND + 12 * world.setting.api_delay + 3 * world.setting.token_delay + 6 * world.setting.step + same_again
}

fn flaw(world: &World, object: usize, now: Millis) -> Option<(Flaw, Millis)> {
    let secret = world.store.get(Kind::Secret, &target_name(object));
    let Some(token) = secret.and_then(|secret| stored_token(secret)) else { return Some((Flaw::Missing, now)) };
    let Some(grant) = world.provider.grant_of(&token).filter(|grant| grant.client == client_id(object)) else {
        return Some((Flaw::Unknown, now));
    };
    if now >= grant.expires {
        return Some((Flaw::Expired, grant.expires));
    }
    grant.revoked.filter(|at| *at <= now).map(|at| (Flaw::Revoked, at))
}

/// Judges every object at a moment.
pub fn judge(world: &mut World, watched: &mut [Watched], now: Millis) {
    for (object, watched) in watched.iter_mut().enumerate() {
        if world.setting.objects.get(object).is_none_or(|setting| setting.foreign) {
            continue;
        }
        let found = flaw(world, object, now);
        let before = watched.flaw;
        watched.flaw = found.map(|(flaw, since)| match before {
            Some((earlier, at)) if earlier == flaw => (flaw, at),
            _ => (flaw, since),
        });
        if let Some((flaw, since)) = watched.flaw {
            judge_flaw(world, object, flaw, since, now);
        }
        judge_ready(world, object, watched, now);
    }
}

fn judge_flaw(world: &mut World, object: usize, flaw: Flaw, since: Millis, now: Millis) {
    if flaw == Flaw::Revoked && world.was_lost_by_a_wrong_clock(object) {
        return;
    }
    let patience = patience(world);
    if flaw == Flaw::Expired && could_have_been_replaced(world, object, since, patience) {
        world.violate("no expired token in the Secret", now, format!("{}: since {since} ms", object_name(object)));
        return;
    }
    if let Some(clean) = world.clean_since(object, now, false)
        && now > clean.max(since) + patience
    {
        let promise = match flaw {
            Flaw::Missing => "the Secret holds a token",
            Flaw::Unknown => "the Secret holds a token that was granted",
            Flaw::Expired => "an expired token is replaced within seconds of the end of faults",
            Flaw::Revoked => "a revoked token is replaced within seconds of the end of faults",
        };
        let detail = format!("{}: {flaw:?} since {since} ms, nothing in the way since {clean} ms", object_name(object));
        world.violate(promise, now, detail);
    }
}

/// Whether there was time enough, free of faults, between the token's refresh time and its expiry.
fn could_have_been_replaced(world: &World, object: usize, expired: Millis, patience: Millis) -> bool {
    let lifetime = world.setting.lifetime;
    let renew = world.renew_of(object);
    let due = expired.saturating_sub(lifetime) + renew.due_at_age(lifetime).1;
    let due = if world.setting.mode == crate::schedule::Mode::SameAgain { expired } else { due };
    world.clean_since(object, expired, false).is_some_and(|clean| clean.max(due) + patience < expired)
}

fn judge_ready(world: &mut World, object: usize, watched: &mut Watched, now: Millis) {
    let credential = world.store.get(Kind::Credential, &object_name(object));
    let claims = credential.is_some_and(|credential| ready(credential) == Some("True"));
    let expired = watched.flaw.filter(|(flaw, _)| matches!(flaw, Flaw::Expired | Flaw::Missing));
    let Some((_, flawed)) = expired.filter(|_| claims) else {
        watched.ready_while_flawed = None;
        return;
    };
    let since = (*watched.ready_while_flawed.get_or_insert(now)).max(flawed);
    let patience = patience(world);
    if let Some(clean) = world.clean_since(object, now, true)
        && now > clean.max(since) + patience
    {
        let detail = format!("{}: {:?}", object_name(object), watched.flaw);
        world.violate("Ready=True only with a token that has not expired", now, detail);
    }
}

/// What is not as the specs say.
#[must_use]
pub fn wrong(world: &World, now: Millis) -> Option<String> {
    (0..world.setting.objects.len()).find_map(|object| {
        let foreign = world.setting.objects.get(object).is_some_and(|setting| setting.foreign);
        let wrong = if foreign { wrong_with_foreign(world, object) } else { wrong_at_end(world, object, now) };
        wrong.map(|wrong| format!("{}: {wrong}", object_name(object)))
    })
}

fn wrong_with_foreign(world: &World, object: usize) -> Option<String> {
    let credential = world.store.get(Kind::Credential, &object_name(object))?;
    let reason = &credential["status"]["conditions"][0]["reason"];
    let data = &world.store.get(Kind::Secret, &target_name(object))?["data"];
    if reason != "TargetConflict" {
        return Some(format!("Ready says {reason} beside a foreign Secret"));
    }
    (*data != json!({"theirs": "eA=="})).then(|| "the foreign Secret was changed".to_owned())
}

fn wrong_at_end(world: &World, object: usize, now: Millis) -> Option<String> {
    if let Some((flaw, _)) = flaw(world, object, now) {
        return Some(format!("the token is {flaw:?}"));
    }
    let credential = world.store.get(Kind::Credential, &object_name(object))?;
    let secret = world.store.get(Kind::Secret, &target_name(object))?;
    let token = stored_token(secret)?;
    let grant = world.provider.grant_of(&token)?;
    let (spec, status) = (&credential["spec"], &credential["status"]);
    let text = |value: &Value, unset: &str| value.as_str().unwrap_or(unset).to_owned();
    if ready(credential) != Some("True") {
        return Some(format!("Ready is {:?}", ready(credential)));
    }
    if status["observedGeneration"] != credential["metadata"]["generation"] {
        return Some("observedGeneration is behind".to_owned());
    }
    if status["failedAttempts"].is_number() {
        return Some("failedAttempts are left".to_owned());
    }
    if grant.scope != text(&spec["scope"], "api") {
        return Some("the token has another scope".to_owned());
    }
    let requested = &credential["metadata"]["annotations"][annotation::REFRESH_REQUESTED];
    if requested.is_string() && status["lastHandledRefresh"] != *requested {
        return Some("a refresh that was asked for is not handled".to_owned());
    }
    let mut keys = vec![(text(&spec["target"]["accessTokenKey"], "access_token"), Some(token.clone()))];
    if let Some(key) = spec["target"]["authorizationKey"].as_str() {
        keys.push((key.to_owned(), Some(format!("Bearer {token}"))));
    }
    if let Some(key) = spec["target"]["expiresAtKey"].as_str() {
        keys.push((key.to_owned(), None));
    }
    for (key, value) in &keys {
        let found = text_of(&secret["data"][key]);
        if found.is_none() || value.is_some() && found != *value {
            return Some(format!("the key {key} is not as it should be"));
        }
    }
    let written = secret["data"].as_object().map_or(0, serde_json::Map::len);
    if written != keys.len() {
        return Some(format!("there are {written} keys"));
    }
    wrong_with_metadata(credential, secret, object)
}

fn wrong_with_metadata(credential: &Value, secret: &Value, object: usize) -> Option<String> {
    let (labels, wanted) = (&secret["metadata"]["labels"], &credential["spec"]["target"]["labels"]);
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if labels[key] != *value {
            return Some(format!("the label {key} is missing"));
        }
    }
    if labels["app.kubernetes.io/managed-by"] != "moneygo-operator" {
        return Some("a label of ours is missing".to_owned());
    }
    let annotations = &secret["metadata"]["annotations"];
    if annotations[annotation::ADOPT].as_str() != Some(&object_name(object)) {
        return Some("the Secret does not name its object".to_owned());
    }
    for (marked, told) in [
        (annotation::EXPIRES_AT, "expiresAt"),
        (annotation::REFRESH_AT, "refreshAt"),
        (annotation::ISSUED_AT, "issuedAt"),
    ] {
        let time = |value: &Value| value.as_str().and_then(|at| at.parse::<Timestamp>().ok());
        if time(&annotations[marked]) != time(&credential["status"][told]) {
            return Some(format!("Secret and status differ in {told}"));
        }
    }
    let owned = secret["metadata"]["ownerReferences"][0]["uid"] == credential["metadata"]["uid"];
    let retained = credential["spec"]["target"]["deletionPolicy"] == "Retain";
    (owned == retained).then(|| "the owner is not as the deletion policy says".to_owned())
}

/// The most grants that a schedule foresees in a time without faults.
#[must_use]
pub fn planned_grants(world: &World, renew: Renew, length: Millis) -> u64 {
    let lifetime = world.setting.lifetime;
    let earliest = renew.due_at_age(lifetime).0.max(SECOND);
    if world.setting.mode == crate::schedule::Mode::SameAgain {
        let halvings = u64::from((lifetime / SECOND).max(1).ilog2()) + 4;
        return (length / earliest + 1) * halvings;
    }
    length / earliest + 1
}

/// Whether a credentials Secret is there and right: for what follows its correction.
#[must_use]
pub fn has_right_credentials(world: &World, object: usize) -> bool {
    let secret = world.store.get(Kind::Secret, &credentials_name(object));
    let value = secret.and_then(|secret| text_of(&secret["data"]["client_secret"]));
    let known = world.provider.clients.get(&client_id(object));
    known.zip(value).is_some_and(|(known, value)| !known.blocked && known.secrets.contains(&value))
}
