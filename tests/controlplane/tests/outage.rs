//! What survives an outage of the API server.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use moneygo_controlplane::{Access, AuditMark, ControlPlane, rule};
use tokio::time::timeout;

/// A paused server answers nothing, ever: this is long enough to believe it.
const SILENCE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn data_users_and_the_audit_log_survive_an_outage() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let namespace = control_plane.namespace("outage").await?;
    let access = Access::default().namespace(&namespace, [rule("", &["configmaps"], &["get", "create"])]);
    let user = control_plane.user(&access).await?;
    let config_maps: Api<ConfigMap> = Api::namespaced(user.client().await?, &namespace);
    let metadata = ObjectMeta { name: Some("kept".to_owned()), ..ObjectMeta::default() };
    let created = config_maps.create(&PostParams::default(), &ConfigMap { metadata, ..ConfigMap::default() }).await?;

    control_plane.stop_apiserver()?;
    assert!(config_maps.get("kept").await.is_err());
    assert!(control_plane.stop_apiserver().is_err());
    control_plane.start_apiserver().await?;
    assert!(control_plane.start_apiserver().await.is_err());
    assert_eq!(config_maps.get("kept").await?.metadata.uid, created.metadata.uid);

    let events = control_plane.audit_events(AuditMark::default(), Some(&user.name))?;
    let verbs: Vec<_> = events.iter().filter(|event| event.resource == "configmaps").map(|e| e.verb.as_str()).collect();
    assert_eq!(verbs, ["create", "get"]);
    control_plane.shutdown().await
}

#[tokio::test]
async fn a_paused_api_server_is_silent_until_it_is_resumed() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let namespaces: Api<Namespace> = Api::all(control_plane.admin().await?);
    control_plane.pause_apiserver()?;
    assert!(timeout(SILENCE, namespaces.get("default")).await.is_err());
    control_plane.resume_apiserver()?;
    namespaces.get("default").await?;
    control_plane.pause_apiserver()?;
    control_plane.shutdown().await
}
