//! What is put into the cluster besides the chart.

use moneygo_operator::crd::{ACCESS_TOKEN_KEY, CLIENT_ID_KEY, CLIENT_SECRET_KEY};
use serde_json::{Value, json};

use super::{
    APPS,
    images::{Images, TAG},
};

/// The stand-in: its Pod and its Service.
pub const STAND_IN: &str = "stand-in";
pub const CONSUMER: &str = "consumer";
/// The object and its Secret.
pub const TOKEN: &str = "payments-token";
/// The `ConfigMap` with the stand-in's certificate authority.
pub const CA: &str = "stand-in-ca";
/// The key in it, as the chart has it where unset.
const CA_KEY: &str = "ca.crt";
const CLIENT: &str = "payments-client";
const CLIENT_ID: &str = "e2e";
const CLIENT_SECRET: &str = "e2e-not-a-secret";
const EXPIRES_AT_KEY: &str = "expires_at";
const PORT: u16 = 8443;
const LIFETIME_SECS: u32 = 180;

/// The stand-in's name in the cluster.
pub fn host() -> String {
    format!("{STAND_IN}.{APPS}.svc")
}

/// A namespace that refuses every Pod that is not `restricted`.
pub fn namespace(name: &str) -> Value {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub fn stand_in_service() -> Value {
    let port = json!({"name": "https", "port": 443, "targetPort": PORT});
    let spec = json!({"selector": {"app": STAND_IN}, "ports": [port]});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": STAND_IN}, "spec": spec})
}

/// Its state is in its memory: it must not be started again.
pub fn stand_in(images: &Images) -> Value {
    let container = json!({
        "args": [
            format!("--listen=0.0.0.0:{PORT}"),
            format!("--expires-in={LIFETIME_SECS}"),
            "--tls",
            format!("--tls-name={}", host()),
            "--ca-out=-",
        ],
        "env": [{"name": "FAKE_MONEYGO_CLIENT", "value": format!("{CLIENT_ID}:{CLIENT_SECRET}")}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    });
    pod(STAND_IN, &images.stand_in, container, &[], &json!({}))
}

/// The certificate authority, for those who trust it.
pub fn ca(pem: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CA}, "data": {CA_KEY: pem}})
}

/// A client's id and secret.
pub fn client() -> Value {
    let data = json!({CLIENT_ID_KEY: CLIENT_ID, CLIENT_SECRET_KEY: CLIENT_SECRET});
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CLIENT}, "stringData": data})
}

/// A token that is replaced every half minute, and lives on for two and a half.
pub fn credential() -> Value {
    json!({
        "apiVersion": "money-go.com/v1alpha1",
        "kind": "MoneyGoCredential",
        "metadata": {"name": TOKEN},
        "spec": {
            "credentialsRef": {"name": CLIENT},
            "target": {"expiresAtKey": EXPIRES_AT_KEY},
            "refresh": {"renewBefore": "150s"},
        },
    })
}

/// It mounts the Secret, as a folder.
pub fn consumer(images: &Images, address: &str) -> Value {
    let container = json!({
        "args": [
            "--folder=/var/run/moneygo",
            format!("--token-key={ACCESS_TOKEN_KEY}"),
            format!("--expires-at-key={EXPIRES_AT_KEY}"),
            format!("--url=https://{}/protected", host()),
            format!("--ca-file=/etc/stand-in/{CA_KEY}"),
        ],
        "volumeMounts": [
            {"name": "token", "mountPath": "/var/run/moneygo", "readOnly": true},
            {"name": "ca", "mountPath": "/etc/stand-in", "readOnly": true},
        ],
    });
    let volumes =
        [json!({"name": "token", "secret": {"secretName": TOKEN}}), json!({"name": "ca", "configMap": {"name": CA}})];
    pod(CONSUMER, &images.consumer, container, &volumes, &aliases(address))
}

fn pod(name: &str, image: &str, mut container: Value, volumes: &[Value], aliases: &Value) -> Value {
    container["name"] = name.into();
    container["image"] = image.into();
    container["imagePullPolicy"] = "IfNotPresent".into();
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    let spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
        "hostAliases": aliases.get("hostAliases"),
    });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

/// The values of the chart: where the image and the stand-in are, and no others.
pub fn values(images: &Images, address: &str) -> Value {
    let mut values = aliases(address);
    values["image"] = json!({"repository": images.operator, "tag": TAG});
    values["moneyGo"] = json!({"tokenUrl": format!("https://{}/token", host())});
    values["caBundle"] = json!({"configMapName": CA});
    values
}

/// For clusters without DNS; with one, too, so that all are alike.
fn aliases(address: &str) -> Value {
    json!({"hostAliases": [{"ip": address, "hostnames": [host()]}]})
}
