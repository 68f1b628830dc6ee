//! What admission refuses, in the namespace of a stage.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{SOON, Stage};

impl Stage {
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
        // The API server heeds a policy some moments after it is there.
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let heeded = async {
            loop {
                match self.secrets().create(&dry, trial).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(refusal) => break refusal.to_string(),
                }
            }
        };
        tokio::time::timeout(SOON, heeded).await.expect("the policy is heeded")
    }

    /// Admission lets through again what [`refuse`](Self::refuse) refused.
    pub async fn let_through(&self) {
        let (policies, bindings) = self.policies();
        bindings.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        policies.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }

    fn policies(&self) -> (Api<ValidatingAdmissionPolicy>, Api<ValidatingAdmissionPolicyBinding>) {
        (Api::all(self.admin.clone()), Api::all(self.admin.clone()))
    }
}
