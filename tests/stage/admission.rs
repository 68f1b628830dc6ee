//! What admission refuses, in the namespace of a stage.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{SOON, Stage};

/// A write that takes longer waits for a webhook.
const WITHOUT_WEBHOOKS: Duration = Duration::from_secs(2);

/// What the API server calls for leave to write a Secret.
pub struct Backend {
    url: String,
    /// Connections are taken by the kernel, and nobody reads from them.
    _silent: Option<TcpListener>,
}

impl Backend {
    /// Nobody listens: the API server answers 500 at once.
    pub async fn away() -> Self {
        // Nobody else is given a port that was just in use.
        let (url, _) = Self::bind().await;
        Self { url, _silent: None }
    }

    /// It says nothing: the API server answers 500 after ten seconds.
    pub async fn silent() -> Self {
        let (url, listener) = Self::bind().await;
        Self { url, _silent: Some(listener) }
    }

    async fn bind() -> (String, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (format!("https://{}/", listener.local_addr().unwrap()), listener)
    }
}

impl Stage {
    /// From here on the API server calls a webhook before it writes a Secret of the stage with all of these labels, and writes none where it
    /// is not answered. Returns once that is so.
    pub async fn call_for_secrets(&self, labels: Value, backend: &Backend) {
        let trial = self.call_for_labelled(labels, backend, "Fail").await;
        self.until_secret_refused(&trial).await;
    }

    /// The same, but the API server writes it where the webhook has not answered for fifteen seconds. Returns once it waits.
    pub async fn wait_for_secrets(&self, labels: Value, backend: &Backend) {
        let trial = self.call_for_labelled(labels, backend, "Ignore").await;
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let secrets = self.secrets();
        let waits =
            async { while tokio::time::timeout(WITHOUT_WEBHOOKS, secrets.create(&dry, &trial)).await.is_ok() {} };
        tokio::time::timeout(SOON, waits).await.expect("the webhook is called");
    }

    /// Returns such a Secret.
    async fn call_for_labelled(&self, labels: Value, backend: &Backend, failure_policy: &str) -> Secret {
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]});
        self.call_for(rule, json!({"matchLabels": labels}), backend, failure_policy).await;
        serde_json::from_value(json!({"metadata": {"name": "trial", "labels": labels}})).unwrap()
    }

    /// The same before it writes the status of any object of the stage, of which `trial` is one.
    pub async fn call_for_statuses(&self, trial: &str, backend: &Backend) {
        let rule = json!({
            "apiGroups": ["money-go.com"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["moneygocredentials/status"],
        });
        self.call_for(rule, json!({}), backend, "Fail").await;
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let patch = Patch::Merge(json!({"status": {"failedAttempts": 99}}));
        until_refused(async || self.credentials().patch_status(trial, &dry, &patch).await).await;
    }

    async fn call_for(&self, rule: Value, objects: Value, backend: &Backend, failure_policy: &str) {
        let webhook = json!({
            "name": "leave.example.com",
            "clientConfig": {"url": backend.url},
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
            "objectSelector": objects,
            "failurePolicy": failure_policy,
            "timeoutSeconds": if failure_policy == "Fail" { 10 } else { 15 },
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        });
        let configuration = json!({"metadata": {"name": self.namespace}, "webhooks": [webhook]});
        let configuration = serde_json::from_value(configuration).unwrap();
        self.webhooks().create(&PostParams::default(), &configuration).await.unwrap();
    }

    async fn until_secret_refused(&self, trial: &Secret) -> String {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        until_refused(async || self.secrets().create(&dry, trial).await).await
    }

    /// The API server calls nobody any more.
    pub async fn call_nobody(&self) {
        self.webhooks().delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }

    fn webhooks(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.admin.clone())
    }

    /// Admission refuses to create any Secret of the trial's name; `refusal` says how, as a validation without its expression. Returns,
    /// once that is heeded, what the trial was answered.
    pub async fn refuse(&self, trial: &Secret, mut refusal: Value) -> String {
        let name = &self.namespace;
        refusal["expression"] = json!(format!("object.metadata.name != '{}'", trial.name_any()));
        let in_namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        let rules =
            json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"]}]);
        let constraints = json!({"namespaceSelector": in_namespace, "resourceRules": rules});
        let policy =
            json!({"metadata": {"name": name}, "spec": {"matchConstraints": constraints, "validations": [refusal]}});
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
        let (policies, bindings) = self.policies();
        policies.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap();
        bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
        self.until_secret_refused(trial).await
    }

    /// Admission lets through again what [`refuse`](Self::refuse) refused.
    pub async fn let_through(&self) {
        let (policies, bindings) = self.policies();
        bindings.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        policies.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }

    /// From here on whatever is written to the operator's Secrets of the stage gets this label, of this value. As [`Self::change_targets`].
    pub async fn label_targets(&self, key: &str, value: &str) -> bool {
        let patch = format!(r#"[JSONPatch{{op: "add", path: "/metadata/labels/{key}", value: "{value}"}}]"#);
        self.change_targets(&patch, json!({}), |trial| trial.labels().get(key).is_some_and(|found| found == value))
            .await
    }

    /// From here on whatever is written to the operator's Secrets of the stage loses this annotation. As [`Self::change_targets`].
    pub async fn strip_targets(&self, key: &str) -> bool {
        let has_it = format!(r#"has(object.metadata.annotations) && "{key}" in object.metadata.annotations"#);
        let place = format!(r#""/metadata/annotations/" + jsonpatch.escapeKey("{key}")"#);
        let patch = format!(r#"{has_it} ? [JSONPatch{{op: "remove", path: {place}}}] : []"#);
        self.change_targets(&patch, json!({key: "x"}), |trial| !trial.annotations().contains_key(key)).await
    }

    /// Has every write to the operator's Secrets of the stage patched so. Returns false where the API server has no such policies (before
    /// Kubernetes 1.36), else once it is heeded: by a Secret with these annotations.
    async fn change_targets(&self, patch: &str, annotations: Value, is_heeded: impl Fn(&Secret) -> bool) -> bool {
        let name = &self.namespace;
        let policies = self.mutating("MutatingAdmissionPolicy");
        match policies.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            listed => drop(listed.unwrap()),
        }
        let managed = "app.kubernetes.io/managed-by";
        let policy = json!({"metadata": {"name": name}, "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                "objectSelector": {"matchLabels": {managed: "moneygo-operator"}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]},
                ],
            },
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        }});
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        let write = PostParams::default();
        policies.create(&write, &serde_json::from_value(policy).unwrap()).await.unwrap();
        let bindings = self.mutating("MutatingAdmissionPolicyBinding");
        bindings.create(&write, &serde_json::from_value(binding).unwrap()).await.unwrap();
        let trial =
            json!({"metadata": {"name": "trial", "labels": {managed: "moneygo-operator"}, "annotations": annotations}});
        let (trial, dry): (Secret, _) =
            (serde_json::from_value(trial).unwrap(), PostParams { dry_run: true, ..PostParams::default() });
        let heeded = async {
            while !is_heeded(&self.secrets().create(&dry, &trial).await.unwrap()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, heeded).await.expect("the policy is heeded");
        true
    }

    /// What is written stays as it is written.
    pub async fn change_nothing(&self) {
        for kind in ["MutatingAdmissionPolicyBinding", "MutatingAdmissionPolicy"] {
            self.mutating(kind).delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        }
    }

    fn mutating(&self, kind: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::all_with(self.admin.clone(), &ApiResource::from_gvk(&kind))
    }

    fn policies(&self) -> (Api<ValidatingAdmissionPolicy>, Api<ValidatingAdmissionPolicyBinding>) {
        (Api::all(self.admin.clone()), Api::all(self.admin.clone()))
    }
}

/// The API server heeds what is to be asked before a write some moments after it is there. Returns what the trial is answered then.
async fn until_refused<T>(trial: impl AsyncFn() -> Result<T, kube::Error>) -> String {
    let refused = async {
        loop {
            match trial().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(refusal) => break refusal.to_string(),
            }
        }
    };
    tokio::time::timeout(SOON, refused).await.expect("the trial is refused")
}
