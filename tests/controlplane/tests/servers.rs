//! What the shared control plane does for a test.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Resource, ResourceExt};
use moneygo_controlplane::{Access, ControlPlane, Release, rule};
use serde_json::json;
use tokio::time::timeout;

/// Longer than the garbage collector takes, shorter than the 30 s after which it looks for new kinds of objects.
const COLLECTED_LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn serves_the_chosen_version() -> Result<()> {
    let version = ControlPlane::shared().await?.admin().await?.apiserver_version().await?;
    assert_eq!(version.git_version, Release::chosen()?.version);
    Ok(())
}

#[tokio::test]
async fn is_shared_and_counts_what_it_serves() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    assert!(std::ptr::eq(control_plane, ControlPlane::shared().await?));
    assert!(control_plane.metrics().await?.contains("apiserver_request_total"));
    Ok(())
}

#[tokio::test]
async fn refuses_a_new_owner_from_whoever_may_not_delete() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("owner").await?;
    let admin = control_plane.admin().await?;
    let owner = Api::namespaced(admin.clone(), &namespace).create(&PostParams::default(), &config_map("owner")).await?;
    Api::namespaced(admin, &namespace).create(&PostParams::default(), &secret("owned")).await?;
    let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner.owner_ref(&())]}}));

    let mut verbs = vec!["get", "patch"];
    let secrets = secrets_of(control_plane, &namespace, &verbs).await?;
    let refused = secrets.patch("owned", &PatchParams::default(), &patch).await;
    let refusal = refused.expect_err("the plugin OwnerReferencesPermissionEnforcement is off").to_string();
    assert!(refusal.contains("cannot set an ownerRef on a resource you can't delete"), "{refusal}");

    verbs.push("delete");
    let secrets = secrets_of(control_plane, &namespace, &verbs).await?;
    secrets.patch("owned", &PatchParams::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
async fn collects_what_a_deleted_object_owned() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("garbage").await?;
    let admin = control_plane.admin().await?;
    let owners: Api<ConfigMap> = Api::namespaced(admin.clone(), &namespace);
    let owner = owners.create(&PostParams::default(), &config_map("owner")).await?;
    let uid = create_owned(admin.clone(), &namespace, &owner, &()).await?;
    owners.delete("owner", &DeleteParams::background()).await?;
    await_collected(admin, &namespace, &uid).await
}

#[tokio::test]
async fn collects_what_an_object_of_a_new_kind_owned() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("crd").await?;
    let admin = control_plane.admin().await?;
    control_plane.install_crd(KEEPER).await?;
    control_plane.install_crd(KEEPER).await?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("test.money-go.com", "v1", "Keeper"));
    let keepers: Api<DynamicObject> = Api::namespaced_with(admin.clone(), &namespace, &kind);
    let keeper = keepers.create(&PostParams::default(), &DynamicObject::new("owner", &kind)).await?;
    let uid = create_owned(admin.clone(), &namespace, &keeper, &kind).await?;
    keepers.delete("owner", &DeleteParams::background()).await?;
    await_collected(admin, &namespace, &uid).await
}

#[tokio::test]
async fn removes_a_namespace_with_all_that_is_in_it() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let namespace = control_plane.namespace("removed").await?;
    let admin = control_plane.admin().await?;
    Api::namespaced(admin.clone(), &namespace).create(&PostParams::default(), &config_map("content")).await?;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(admin);
    let uid = namespaces.get(&namespace).await?.uid().context("no uid")?;
    namespaces.delete(&namespace, &DeleteParams::default()).await?;
    timeout(COLLECTED_LIMIT, await_condition(namespaces, &namespace, conditions::is_deleted(&uid))).await??;
    Ok(())
}

#[tokio::test]
async fn lets_a_user_do_what_the_rules_say_and_records_it() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let (inside, outside) = (control_plane.namespace("inside").await?, control_plane.namespace("outside").await?);
    let access = Access::default().manifests(ROLES, &inside)?;
    let user = control_plane.user(&access).await?;
    let client = user.client().await?;
    let mark = control_plane.audit_mark()?;

    let list = ListParams::default();
    Api::<Secret>::namespaced(client.clone(), &inside).list(&list).await?;
    Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone()).list(&list).await?;
    let refused = Api::<Secret>::namespaced(client, &outside).list(&list).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.is_forbidden()));

    let events = control_plane.audit_events(mark, Some(&user.name))?;
    let seen: Vec<_> =
        events.iter().map(|e| (e.verb.as_str(), e.resource.as_str(), e.namespace.as_str(), e.code)).collect();
    let expected = [
        ("list", "secrets", inside.as_str(), 200),
        ("list", "namespaces", "", 200),
        ("list", "secrets", outside.as_str(), 403),
    ];
    assert_eq!(seen, expected);
    assert_eq!(events[0].request_uri, format!("/api/v1/namespaces/{inside}/secrets?"));
    Ok(())
}

#[tokio::test]
async fn tells_users_apart() -> Result<()> {
    let control_plane = ControlPlane::shared().await?;
    let (one, other) = (control_plane.user(&Access::default()).await?, control_plane.user(&Access::default()).await?);
    assert_ne!(one.name, other.name);
    Ok(())
}

#[tokio::test]
async fn starts_within_seconds() -> Result<()> {
    ControlPlane::shared().await?;
    let started = Instant::now();
    let second = ControlPlane::start().await?;
    let elapsed = started.elapsed();
    second.shutdown().await?;
    println!("ready after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(30), "ready after {elapsed:?}");
    Ok(())
}

async fn secrets_of(control_plane: &ControlPlane, namespace: &str, verbs: &[&str]) -> Result<Api<Secret>> {
    let access = Access::default().namespace(namespace, [rule("", &["secrets"], verbs)]);
    let client = control_plane.user(&access).await?.client().await?;
    Ok(Api::namespaced(client, namespace))
}

async fn create_owned<K: Resource>(admin: Client, namespace: &str, owner: &K, kind: &K::DynamicType) -> Result<String> {
    let mut secret = secret("owned");
    secret.metadata.owner_references = owner.owner_ref(kind).map(|owner| vec![owner]);
    let created: Secret = Api::namespaced(admin, namespace).create(&PostParams::default(), &secret).await?;
    created.uid().context("no uid")
}

async fn await_collected(admin: Client, namespace: &str, uid: &str) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(admin, namespace);
    timeout(COLLECTED_LIMIT, await_condition(secrets, "owned", conditions::is_deleted(uid))).await??;
    Ok(())
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap { metadata: named(name), ..ConfigMap::default() }
}

fn secret(name: &str) -> Secret {
    Secret { metadata: named(name), ..Secret::default() }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

const ROLES: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
  - {apiGroups: [''], resources: [namespaces], verbs: [list]}
---
# Nothing here.
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: somewhere}
rules:
  - {apiGroups: [''], resources: [secrets], verbs: [list]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: somewhere}
";

const KEEPER: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: keepers.test.money-go.com}
spec:
  group: test.money-go.com
  scope: Namespaced
  names: {kind: Keeper, plural: keepers}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object}}
";
