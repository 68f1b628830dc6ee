//! A target Secret with any annotations, labels and data: reading it never fails, what we write into it is found again, and
//! what is of others stays.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use arbitrary::Arbitrary;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use libfuzzer_sys::fuzz_target;
use moneygo_operator::crd::{DeletionPolicy, Resolved, annotation};
use moneygo_operator::digest::DigestKey;
use moneygo_operator::schedule::{Life, Renew};
use moneygo_operator::secret::{
    Content, Digests, Facts, Found, Issue, Owner, Ownership, Version, compose, inspect, is_dressed, stored_token,
};

const OURS: [&str; 13] = [
    annotation::ADOPT,
    annotation::ISSUED_AT,
    annotation::EXPIRES_AT,
    annotation::REFRESH_AT,
    annotation::SAME_TOKEN,
    annotation::SCOPE,
    annotation::REFRESH_HANDLED,
    annotation::CREDENTIALS_UID,
    annotation::CREDENTIALS_RESOURCE_VERSION,
    annotation::TOKEN_HMAC,
    annotation::CREDENTIALS_HMAC,
    annotation::APPLIED,
    annotation::REFRESH_REQUESTED,
];
const TOKEN: &str = "a-token-of-money-go";

#[derive(Debug, Arbitrary)]
struct Input {
    annotations: Vec<(u8, String)>,
    foreign: BTreeMap<String, String>,
    data: BTreeMap<String, Vec<u8>>,
    token: String,
    has_key: bool,
    remembered: Option<(i32, u32)>,
    lifetime_secs: u32,
    retained: bool,
}

fuzz_target!(|input: Input| {
    let key = input.has_key.then(|| DigestKey::new(&[7; 32])).flatten();
    let (owner, spec) = (owner(), spec(&input));
    let live = secret(&input);
    let facts = Facts::of(&live.metadata);
    let remembered = input.remembered.and_then(|(at, length)| {
        let at = Timestamp::from_second(at.into()).ok()?;
        Some(Life::new(at, Duration::from_secs(length.into())))
    });
    if let Found::Token(life) = inspect(&live, &facts, &spec, remembered, key.as_ref()) {
        assert!(life.is_credible(), "{life:?}");
        assert!(stored_token(&live, &facts, &spec).is_some());
        assert!(life.refresh_at(spec.renew, &owner.uid) <= life.expires_at);
    }
    write_and_read_back(&input, &live, &owner, &spec, key.as_ref());
});

fn write_and_read_back(input: &Input, live: &Secret, owner: &Owner, spec: &Resolved, key: Option<&DigestKey>) {
    let life = Life::new(Timestamp::UNIX_EPOCH, Duration::from_secs(u64::from(input.lifetime_secs) + 1));
    let issue = Issue {
        life,
        scope: spec.scope.clone(),
        refresh_handled: None,
        credentials: Version { uid: "u".to_owned(), resource_version: "1".to_owned() },
        credentials_digest: key.map(|key| key.of_credentials("id", "secret")),
    };
    let content = Content { token: TOKEN, issue: &issue };
    let written = compose(Some(live), owner, spec, content, key, Ownership::AsWanted);
    let facts = Facts::of(&written.metadata);
    assert_eq!(stored_token(&written, &facts, spec), Some(TOKEN));
    // managedFields are the API server's to add: without a digest nothing else proves the data.
    let remembered = Some(life);
    assert_eq!(inspect(&written, &facts, spec, remembered, key), Found::Token(life));
    let digests = Digests { token: key.is_some(), credentials: key.is_some() };
    assert!(is_dressed(&facts, owner, spec, life, digests, false));
    let again = compose(Some(&written), owner, spec, content, key, Ownership::AsWanted);
    assert_eq!(again, written, "writing the same again changes nothing");
    for (name, value) in &input.foreign {
        assert_eq!(written.metadata.annotations.as_ref().and_then(|all| all.get(&format!("x/{name}"))), Some(value));
    }
}

fn owner() -> Owner {
    Owner { namespace: "n".to_owned(), name: "o".to_owned(), uid: "the-uid".to_owned() }
}

fn spec(input: &Input) -> Resolved {
    Resolved {
        credentials: "client".to_owned(),
        client_id_key: "client_id".to_owned(),
        client_secret_key: "client_secret".to_owned(),
        scope: "api".to_owned(),
        target: "o".to_owned(),
        access_token_key: "access_token".to_owned(),
        authorization_key: input.retained.then(|| "authorization".to_owned()),
        expires_at_key: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deletion_policy: if input.retained { DeletionPolicy::Retain } else { DeletionPolicy::Delete },
        renew: Renew::ThirdLeft,
        suspend: false,
    }
}

fn secret(input: &Input) -> Secret {
    let ours = input.annotations.iter().map(|(which, value)| {
        let name = OURS[usize::from(*which) % OURS.len()];
        (name.to_owned(), value.clone())
    });
    let foreign = input.foreign.iter().map(|(name, value)| (format!("x/{name}"), value.clone()));
    let mut data: BTreeMap<_, _> =
        input.data.iter().map(|(name, value)| (name.clone(), ByteString(value.clone()))).collect();
    data.insert("access_token".to_owned(), ByteString(input.token.clone().into_bytes()));
    Secret {
        metadata: ObjectMeta { name: Some("o".to_owned()), annotations: Some(ours.chain(foreign).collect()), ..ObjectMeta::default() },
        data: Some(data),
        ..Secret::default()
    }
}
