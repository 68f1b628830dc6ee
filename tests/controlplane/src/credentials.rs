//! Keys, certificates and tokens that live as long as one control plane does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use ring::rand::{SystemRandom, generate};
use serde_json::json;

/// How many users can be handed out: the API server reads its tokens once, when it starts.
pub const USERS_MAX: usize = 256;

/// The files that the servers and their clients read.
pub struct Credentials {
    /// Certificate of the authority that signed the API server's.
    pub authority: PathBuf,
    /// The API server's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The key that service account tokens are signed with.
    pub service_accounts_key: PathBuf,
    /// The key that they are checked with.
    pub service_accounts_public_key: PathBuf,
    /// `TOKEN,user,uid,"groups"` for the administrator, the controllers and every user to come.
    pub tokens_file: PathBuf,
    /// A kubeconfig for a member of `system:masters`.
    pub admin: PathBuf,
    /// The same for kube-controller-manager, so that the audit log tells them apart.
    pub controllers: PathBuf,
    user_tokens: Vec<String>,
    server: String,
}

impl Credentials {
    /// Makes all of them in `folder`, for an API server at `https://127.0.0.1:port`.
    pub fn make(folder: &Path, port: u16) -> Result<Self> {
        let mut made = Self {
            authority: folder.join("ca.crt"),
            certificate: folder.join("apiserver.crt"),
            key: folder.join("apiserver.key"),
            service_accounts_key: folder.join("service-accounts.key"),
            service_accounts_public_key: folder.join("service-accounts.pub"),
            tokens_file: folder.join("tokens.csv"),
            admin: folder.join("admin.kubeconfig"),
            controllers: folder.join("controllers.kubeconfig"),
            user_tokens: (0..USERS_MAX).map(|_| random_hex()).collect::<Result<_>>()?,
            server: format!("https://127.0.0.1:{port}"),
        };
        made.write_certificates()?;
        made.write_tokens()?;
        Ok(made)
    }

    /// Writes a kubeconfig for the user of that number, and returns where.
    pub fn user_kubeconfig(&self, index: usize) -> Result<PathBuf> {
        let token = self.user_tokens.get(index).with_context(|| format!("all {USERS_MAX} users are taken"))?;
        let path = self.admin.with_file_name(format!("{}.kubeconfig", user_name(index)));
        self.write_kubeconfig(&path, &user_name(index), token)?;
        Ok(path)
    }

    fn write_certificates(&self) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "moneygo-controlplane");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(&self.authority, authority.pem())?;

        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(String::from);
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let key = KeyPair::generate()?;
        fs::write(&self.certificate, params.signed_by(&key, &authority)?.pem())?;
        fs::write(&self.key, key.serialize_pem())?;

        let key = KeyPair::generate()?;
        fs::write(&self.service_accounts_key, key.serialize_pem())?;
        fs::write(&self.service_accounts_public_key, key.public_key_pem())?;
        Ok(())
    }

    fn write_tokens(&mut self) -> Result<()> {
        let (admin, controllers) = (random_hex()?, random_hex()?);
        self.write_kubeconfig(&self.admin, "admin", &admin)?;
        self.write_kubeconfig(&self.controllers, "system:kube-controller-manager", &controllers)?;
        let mut lines = vec![
            format!("{admin},admin,admin,system:masters"),
            format!("{controllers},system:kube-controller-manager,controllers,system:masters"),
        ];
        let users = self.user_tokens.iter().enumerate();
        lines.extend(users.map(|(index, token)| format!("{token},{name},{name}", name = user_name(index))));
        fs::write(&self.tokens_file, lines.join("\n"))?;
        Ok(())
    }

    fn write_kubeconfig(&self, path: &Path, user: &str, token: &str) -> Result<()> {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "controlplane", "cluster": {
                "server": self.server,
                "certificate-authority": self.authority,
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "controlplane", "context": {"cluster": "controlplane", "user": user}}],
            "current-context": "controlplane",
        });
        // JSON is YAML.
        fs::write(path, kubeconfig.to_string())?;
        Ok(())
    }
}

/// The name under which RBAC and the audit log know the user of that number.
pub fn user_name(index: usize) -> String {
    format!("user-{index}")
}

/// 128 random bits: a token, or a name that nobody else has.
pub fn random_hex() -> Result<String> {
    let random = generate::<[u8; 16]>(&SystemRandom::new()).ok().context("the system has no randomness")?;
    Ok(format!("{:032x}", u128::from_be_bytes(random.expose())))
}
