//! Whose a Secret is: one that is not ours is never touched, and no token is asked for on its account.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ObjectMeta, PostParams, PropagationPolicy};
use kube::{Api, Resource as _, ResourceExt as _};
use moneygo_controlplane::rule;
use moneygo_operator::crd::{MoneyGoCredential, annotation};
use serde_json::{Value, json};
use stage::{SOON, Stage, condition, credentials_name};

/// Somebody else's Secret.
fn foreign(name: &str) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([("team".to_owned(), "billing".to_owned())].into()),
            annotations: Some([("example.com/note".to_owned(), "mind the gap".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("password".to_owned(), ByteString(b"\x00\xffnot a token".to_vec()))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn adopted_by(name: &str) -> Value {
    json!({"metadata": {"annotations": {annotation::ADOPT: name}}})
}

async fn create(stage: &Stage, secret: &Secret) -> Secret {
    stage.secrets().create(&PostParams::default(), secret).await.unwrap()
}

/// The object says `TargetConflict`, has been looked at again since, and neither the Secret was touched nor a token asked for.
async fn leaves_alone(stage: &Stage, name: &str, before: &Secret) {
    stage.says(name, "Ready", "False", "TargetConflict").await;
    stage.patch(name, json!({"spec": {"refresh": {"renewBeforePercentage": 20}}})).await;
    stage.says(name, "Ready", "False", "TargetConflict").await;
    stage.says(name, "Stalled", "True", "TargetConflict").await;
    assert_eq!(stage.secret(&before.name_any()).await, *before);
    assert_eq!(stage.moneygo.request_count_of(name), 0);
}

async fn gone(stage: &Stage, name: &str) {
    let look = |scene: &stage::Scene| scene.any_credential(name).is_none().then_some(());
    stage.until(&format!("the object {name} is gone"), SOON, look).await;
}

/// Waits until the Secret holds the last token that its client was given.
async fn holds_newest(stage: &Stage, secret: &str, client: &str) -> Secret {
    let what = format!("{secret} holds the newest token of {client}");
    let found = stage.until(&what, SOON, |scene| {
        let newest = stage.moneygo.grants_of(client).pop()?.token;
        (scene.token(secret)? == newest).then(|| scene.secret(secret).cloned())?
    });
    found.await
}

fn controllers(secret: &Secret) -> Vec<&OwnerReference> {
    secret.owner_references().iter().filter(|owner| owner.controller == Some(true)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_is_left_alone_until_it_says_otherwise_and_its_other_keys_stay() {
    let stage = Stage::new("foreign").await;
    let operator = stage.operator().start().await;
    let before = create(&stage, &foreign("payments")).await;
    stage.subscribe("payments", json!({})).await;
    leaves_alone(&stage, "payments", &before).await;
    // Named wrong is not named.
    let before = stage.patch_secret("payments", adopted_by("payment")).await;
    leaves_alone(&stage, "payments", &before).await;

    stage.patch_secret("payments", adopted_by("payments")).await;
    stage.ready("payments").await;
    let adopted = holds_newest(&stage, "payments", "payments").await;
    assert_eq!(adopted.metadata.uid, before.metadata.uid);
    assert_eq!(adopted.data.as_ref().unwrap()["password"], before.data.as_ref().unwrap()["password"]);
    assert_eq!(adopted.labels()["team"], "billing");
    assert_eq!(adopted.annotations()["example.com/note"], "mind the gap");
    assert_eq!(stage.grants_of("payments"), 1);
    // The documented rules have no `delete` on Secrets, without which the API server lets nobody change an owner.
    assert_eq!(adopted.owner_references(), []);
    stage.told("payments", "OwnerRefused").await;

    // It goes on so: every later write leaves the owner as it is, and the other keys.
    stage.request_refresh("payments", "once more").await;
    stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    let refreshed = holds_newest(&stage, "payments", "payments").await;
    assert_eq!(refreshed.data.as_ref().unwrap()["password"], before.data.as_ref().unwrap()["password"]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_ends_with_the_foreign_secret() {
    let stage = Stage::new("foreign-gone").await;
    let operator = stage.operator().start().await;
    let before = create(&stage, &foreign("payments")).await;
    stage.subscribe("payments", json!({})).await;
    leaves_alone(&stage, "payments", &before).await;
    stage.delete_secret("payments").await;
    let object = stage.ready("payments").await;
    let made = holds_newest(&stage, "payments", "payments").await;
    assert_eq!(Some(&controllers(&made)[0].uid), object.metadata.uid.as_ref());
    assert_eq!(stage.grants_of("payments"), 1);
    operator.stop().await;
}

/// That an owner could not be changed says nothing about a Secret that is made anew: creating one with an owner needs no `delete`.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_refused_is_given_to_the_secret_that_is_made_anew() {
    let stage = Stage::new("refused-anew").await;
    let operator = stage.operator().start().await;
    create(&stage, &foreign("payments")).await;
    stage.patch_secret("payments", adopted_by("payments")).await;
    let object = stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    stage.told("payments", "OwnerRefused").await;
    stage.delete_secret("payments").await;
    stage.moneygo.wait_for_grants("payments", 2, SOON).await.unwrap();
    let made = holds_newest(&stage, "payments", "payments").await;
    let owners: Vec<_> = controllers(&made).into_iter().map(|owner| &owner.uid).collect();
    assert_eq!(owners, [object.metadata.uid.as_ref().unwrap()]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_delete_granted_the_adopted_secret_gets_its_owner() {
    let stage = Stage::setup("delete-granted").allow(rule("", &["secrets"], &["delete"])).open().await;
    let operator = stage.operator().start().await;
    create(&stage, &foreign("payments")).await;
    stage.patch_secret("payments", adopted_by("payments")).await;
    let object = stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let adopted = stage.secret("payments").await;
    let controllers = controllers(&adopted);
    assert_eq!(controllers.iter().map(|owner| &owner.uid).collect::<Vec<_>>(), [object.uid().as_ref().unwrap()]);
    assert_eq!(controllers[0].block_owner_deletion, None);
    assert!(adopted.data.as_ref().unwrap().contains_key("password"));
    assert!(stage.events("payments").await.iter().all(|event| event.reason.as_deref() != Some("OwnerRefused")));
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_another_controller_has_is_its_own_whatever_it_is_annotated_with() {
    let stage = Stage::new("controlled").await;
    let operator = stage.operator().start().await;
    let config_maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), &stage.namespace);
    let config_map = ConfigMap { metadata: foreign("chief").metadata, ..ConfigMap::default() };
    let chief = config_maps.create(&PostParams::default(), &config_map).await.unwrap();
    let mut secret = foreign("payments");
    secret.metadata.owner_references = Some(vec![chief.controller_owner_ref(&()).unwrap()]);
    secret.annotations_mut().insert(annotation::ADOPT.to_owned(), "payments".to_owned());
    let before = create(&stage, &secret).await;
    stage.subscribe("payments", json!({})).await;
    leaves_alone(&stage, "payments", &before).await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_objects_with_one_target_one_writes_and_the_other_takes_over_when_it_goes() {
    let stage = Stage::new("two").await;
    let operator = stage.operator().start().await;
    let spec = json!({"target": {"name": "shared"}});
    stage.subscribe("first", spec.clone()).await;
    stage.ready("first").await;
    let before = stage.secret("shared").await;
    stage.subscribe("second", spec).await;
    leaves_alone(&stage, "second", &before).await;
    let said = condition(&stage.get("second").await, "Ready").unwrap().message;
    assert!(said.contains("\"first\""), "{said}");

    stage.delete("first").await;
    stage.ready("second").await;
    let after = holds_newest(&stage, "shared", "second").await;
    assert_ne!(after.metadata.uid, before.metadata.uid, "the first's Secret was collected");
    assert_eq!(controllers(&after)[0].name, "second");
    assert_eq!([stage.grants_of("first"), stage.grants_of("second")], [1, 1]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_secret_goes_to_whom_it_names() {
    let stage = Stage::new("heir").await;
    let operator = stage.operator().start().await;
    let spec = json!({"target": {"name": "shared", "deletionPolicy": "Retain"}});
    stage.subscribe("first", spec.clone()).await;
    stage.ready("first").await;
    stage.subscribe("second", spec).await;
    stage.says("second", "Ready", "False", "TargetConflict").await;
    stage.delete("first").await;
    gone(&stage, "first").await;
    leaves_alone(&stage, "second", &stage.secret("shared").await).await;
    stage.patch_secret("shared", adopted_by("second")).await;
    stage.ready("second").await;
    holds_newest(&stage, "shared", "second").await;
    assert_eq!([stage.grants_of("first"), stage.grants_of("second")], [1, 1]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_objects_the_one_that_the_secret_names_comes_before_an_older_one() {
    let stage = Stage::new("named").await;
    create(&stage, &foreign("shared")).await;
    stage.patch_secret("shared", adopted_by("third")).await;
    for name in ["first", "second", "third"] {
        stage.subscribe(name, json!({"target": {"name": "shared"}})).await;
    }
    let operator = stage.operator().start().await;
    stage.ready("third").await;
    holds_newest(&stage, "shared", "third").await;
    for name in ["first", "second"] {
        stage.says(name, "Ready", "False", "TargetConflict").await;
        assert_eq!(stage.moneygo.request_count_of(name), 0);
    }
    assert_eq!(stage.grants_of("third"), 1);
    operator.stop().await;
}

/// Deletes the object, leaves its Secret and makes the object anew: the token that is there goes on.
async fn resumes(stage: &Stage, spec: Value, deletion: &DeleteParams, meanwhile: impl AsyncFn()) {
    let old = stage.subscribe("payments", spec.clone()).await;
    stage.ready("payments").await;
    let before = stage.secret("payments").await;
    stage.credentials().delete("payments", deletion).await.unwrap();
    gone(stage, "payments").await;
    meanwhile().await;
    assert_eq!(stage.secret("payments").await.data, before.data);

    let new = stage.credential("payments", spec).await;
    assert_ne!(new.uid(), old.uid());
    let object = stage.ready("payments").await;
    let after = stage.secret("payments").await;
    assert_eq!((&after.data, &after.metadata.uid), (&before.data, &before.metadata.uid));
    let issued = |secret: &Secret| secret.annotations()[annotation::ISSUED_AT].clone();
    assert_eq!(issued(&after), issued(&before));
    assert_eq!(object.status.unwrap().issued_at.unwrap().to_string(), issued(&before));
    assert_eq!(stage.moneygo.request_count_of("payments"), 1);
    assert!(
        controllers(&after).iter().all(|owner| Some(&owner.uid) == new.uid().as_ref()),
        "{:?}",
        controllers(&after)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_made_anew_resumes_with_the_token_that_was_retained() {
    let stage = Stage::new("retain").await;
    let operator = stage.operator().start().await;
    let spec = json!({"target": {"deletionPolicy": "Retain"}});
    resumes(&stage, spec, &DeleteParams::default(), async || {}).await;
    operator.stop().await;
}

fn orphaning() -> DeleteParams {
    DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_made_anew_resumes_with_the_token_that_was_orphaned() {
    let stage = Stage::setup("orphan").allow(rule("", &["secrets"], &["delete"])).open().await;
    let operator = stage.operator().start().await;
    resumes(&stage, json!({}), &orphaning(), async || {}).await;
    operator.stop().await;
}

/// As a backup does that restores Secrets first: their owners are of another life. The garbage collector takes such a reference
/// out as long as another owner lives, before the operator or after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_gone_does_not_keep_the_object_of_its_name_out() {
    let stage = Stage::setup("dead-owner").allow(rule("", &["secrets"], &["delete"])).open().await;
    let operator = stage.operator().start().await;
    let config_maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), &stage.namespace);
    let config_map = ConfigMap { metadata: foreign("other-owner").metadata, ..ConfigMap::default() };
    let other = config_maps.create(&PostParams::default(), &config_map).await.unwrap();
    let dead = OwnerReference {
        api_version: MoneyGoCredential::api_version(&()).into_owned(),
        kind: "MoneyGoCredential".to_owned(),
        name: "payments".to_owned(),
        uid: "6c4a0ec1-7a06-4a4f-a9b8-5c6e9b6f7d10".to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let owners = [dead, other.owner_ref(&()).unwrap()];
    let restore = async || {
        stage.patch_secret("payments", json!({"metadata": {"ownerReferences": owners}})).await;
    };
    resumes(&stage, json!({}), &orphaning(), restore).await;
    operator.stop().await;
}

/// The garbage collector is after the old object's Secret while the new object is there already: whoever is first, the new one ends
/// with a Secret of its own, for one grant at most.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_at_once_gets_a_secret_of_its_own() {
    let stage = Stage::new("replaced").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let old = stage.secret("payments").await;
    stage.delete("payments").await;
    let new = stage.credential("payments", json!({})).await;
    let is_owned = |scene: &stage::Scene| {
        let secret = scene.secret("payments")?;
        let is_owned = controllers(secret).iter().any(|owner| Some(&owner.uid) == new.metadata.uid.as_ref());
        (is_owned && secret.metadata.uid != old.metadata.uid).then_some(())
    };
    stage.until("the new object owns a new Secret", SOON, is_owned).await;
    stage.ready("payments").await;
    holds_newest(&stage, "payments", "payments").await;
    assert_eq!(stage.grants_of("payments"), 2);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_secret_costs_no_grant_and_is_made_anew_once_it_is_gone() {
    let stage = Stage::new("immutable").await;
    let operator = stage.operator().start().await;
    let mut secret = foreign("payments");
    secret.immutable = Some(true);
    secret.annotations_mut().insert(annotation::ADOPT.to_owned(), "payments".to_owned());
    let before = create(&stage, &secret).await;
    stage.subscribe("payments", json!({})).await;
    stage.says("payments", "Ready", "False", "TargetImmutable").await;
    stage.says("payments", "Stalled", "True", "TargetImmutable").await;
    assert_eq!(stage.secret("payments").await, before);
    assert_eq!(stage.moneygo.request_count(), 0);

    stage.delete_secret("payments").await;
    stage.ready("payments").await;
    assert_eq!(stage.grants_of("payments"), 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_write_is_refused_is_kept_and_written_once_that_is_allowed() {
    let stage = Stage::new("refused").await;
    let operator = stage.operator().start().await;
    stage.refuse(&foreign("payments"), json!({"reason": "Forbidden"})).await;
    stage.subscribe("payments", json!({})).await;
    let object = stage.says("payments", "Ready", "False", "TargetForbidden").await;
    assert_eq!(condition(&object, "Stalled").unwrap().status, "False");
    let issued = stage.moneygo.grants_of("payments");
    assert_eq!(issued.len(), 1);

    stage.let_through().await;
    stage.ready("payments").await;
    assert_eq!(stage.token("payments").await, issued[0].token);
    assert_eq!(stage.moneygo.request_count_of("payments"), 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_objects_with_one_client_are_both_warned_of() {
    let stage = Stage::new("shared-client").await;
    let operator = stage.operator().start().await;
    stage.subscribe("first", json!({})).await;
    stage.ready("first").await;
    stage.credential("second", json!({"credentialsRef": {"name": credentials_name("first")}})).await;
    stage.ready("second").await;
    for (name, other) in [("second", "first"), ("first", "second")] {
        let event = stage.told(name, "SharedCredentials").await;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert!(event.note.unwrap().contains(&format!("\"{other}\"")));
    }
    let tokens: BTreeMap<_, _> = stage.moneygo.ledger().into_iter().map(|grant| (grant.token, grant.client)).collect();
    assert_eq!(tokens.len(), 2);
    operator.stop().await;
}

/// Who wants another label, and changes each write on its way, is not written against again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_admission_sets_otherwise_is_not_put_back_without_end() {
    let stage = Stage::new("labelled").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({"target": {"labels": {"team": "billing"}}})).await;
    stage.ready("payments").await;
    if !stage.label_targets("team", "everyone").await {
        eprintln!("not tried: this API server has no MutatingAdmissionPolicy");
        operator.stop().await;
        return;
    }
    let mark = stage.mark();
    stage.patch_secret("payments", json!({"metadata": {"labels": {"team": "mine"}}})).await;
    operator.until_logged("Undone", 1).await;
    // Another spec is another matter, and is tried at once.
    stage.patch("payments", json!({"spec": {"target": {"annotations": {"example.com/note": "here"}}}})).await;
    let annotated = |scene: &stage::Scene| {
        scene
            .secret("payments")
            .is_some_and(|secret| secret.annotations().contains_key("example.com/note"))
            .then_some(())
    };
    stage.until("the annotation is there", SOON, annotated).await;
    // And what admission lets be is put back, when it is tried again.
    stage.change_nothing().await;
    let labelled = |scene: &stage::Scene| {
        scene.secret("payments").is_some_and(|secret| secret.labels()["team"] == "billing").then_some(())
    };
    stage.until("the label is there", SOON, labelled).await;
    let writes =
        stage.requests(mark).into_iter().filter(|request| request.resource == "secrets" && request.verb == "update");
    let writes = writes.count();
    assert!((3..=6).contains(&writes), "{writes} writes");
    assert_eq!(stage.grants_of("payments"), 1);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_object_nothing_is_written_but_its_status() {
    let stage = Stage::new("whose-fields").await;
    let operator = stage.operator().start().await;
    let config = ConfigMap {
        metadata: ObjectMeta { name: Some("parent".to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    let configs: Api<ConfigMap> = Api::namespaced(stage.plane.admin().await.unwrap(), &stage.namespace);
    let parent = configs.create(&PostParams::default(), &config).await.unwrap();
    stage.subscribe("payments", json!({})).await;
    let before = stage
        .patch("payments", json!({"metadata": {
            "labels": {"team": "billing"},
            "annotations": {"example.com/note": "mind the gap"},
            "finalizers": ["example.com/hold"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "parent", "uid": parent.metadata.uid}],
        }}))
        .await;
    stage.patch("payments", json!({"spec": {"refresh": {"renewBeforePercentage": 20}}})).await;
    let what = "the status is of the second spec";
    let look = |scene: &stage::Scene| {
        let object = scene.credential("payments").filter(stage::is_ready)?;
        (object.status.as_ref()?.observed_generation == Some(2)).then_some(object)
    };
    let after = stage.until(what, SOON, look).await;
    let of_others = |object: &MoneyGoCredential| {
        let meta = &object.metadata;
        let managers = meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
        let managers: Vec<_> = managers.filter_map(|entry| entry.manager.clone()).collect();
        (
            meta.labels.clone(),
            meta.annotations.clone(),
            meta.finalizers.clone(),
            meta.owner_references.clone(),
            managers,
        )
    };
    assert_eq!(of_others(&after), of_others(&before));
    let ours = after
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some("moneygo-operator"));
    let ours: Vec<_> = ours.map(|entry| (entry.subresource.as_deref(), entry.fields_v1.clone().unwrap().0)).collect();
    assert!(
        matches!(&ours[..], [(Some("status"), Value::Object(fields))] if fields.keys().eq(["f:status"])),
        "{ours:?}"
    );
    stage.patch("payments", json!({"metadata": {"finalizers": null}})).await;
    operator.stop().await;
}
