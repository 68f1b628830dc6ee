//! The servers: starting them, waiting for them, stopping and pausing them, and clients for them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::audit;
use crate::binaries::{Binaries, Release};
use crate::credentials::{Credentials, random_hex};
use crate::halt::halt;
use crate::leash::Leash;

/// How long a server may take to become ready.
const READY_LIMIT: Duration = Duration::from_mins(1);
const READY_POLL: Duration = Duration::from_millis(20);
/// How long a single question whether it is ready may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long a new kind of object may take to be served.
const ESTABLISHED_LIMIT: Duration = Duration::from_secs(30);
/// How much of a failed server's log its error shows.
const LOG_TAIL_BYTES: u64 = 4096;
/// How often the start is tried with other ports when one of them was taken meanwhile.
const START_ATTEMPTS: usize = 5;
/// Below the ports from which systems choose for outgoing connections. Above that a client that retries during an
/// outage can be given the very port it connects to, talk to itself, and keep the server from coming back.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// An API server with its store and controllers, on loopback ports, for this process alone.
///
/// All is gone when it is dropped, and when this process ends in whatever way: processes, ports and the folder.
pub struct ControlPlane {
    // Fields are dropped in this order: the servers end before the leash removes what they write.
    servers: Mutex<Servers>,
    binaries: Binaries,
    credentials: Credentials,
    ports: Ports,
    users: AtomicUsize,
    installing: tokio::sync::Mutex<()>,
    leash: Leash,
}

/// Ids of processes.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// The API server's.
    pub apiserver: u32,
    /// Its store's.
    pub etcd: u32,
}

struct Servers {
    etcd: Server,
    apiserver: Option<Server>,
    controllers: Option<Server>,
}

struct Ports {
    etcd: u16,
    etcd_peers: u16,
    apiserver: u16,
}

impl ControlPlane {
    /// The control plane that all tests of this process share. Give each test a namespace of its own.
    ///
    /// # Errors
    /// As [`ControlPlane::start`]; the next call tries again.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Builds what is missing and starts a control plane of the chosen release ([`Release::chosen`]). It takes some seconds, and minutes if something must be built.
    ///
    /// # Errors
    /// If no known release is chosen, if an executable cannot be found or built ([`Binaries::locate`]), or if a server does not become ready within a
    /// minute: then the error shows the end of its log.
    pub async fn start() -> Result<Self> {
        let binaries = spawn_blocking(|| Binaries::locate(Release::chosen()?)).await??;
        for _ in 1..START_ATTEMPTS {
            match Self::launch(binaries.clone()).await {
                Err(error) if is_port_taken(&error) => {}
                started => return started,
            }
        }
        Self::launch(binaries).await
    }

    async fn launch(binaries: Binaries) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("moneygo-controlplane-{}", random_hex()?));
        let leash = Leash::new(folder).context("cannot make a temporary folder")?;
        let ports = Ports::choose()?;
        let credentials = Credentials::make(leash.folder(), ports.apiserver)?;
        fs::write(leash.folder().join("audit-policy.json"), audit::POLICY)?;

        let etcd = Server::spawn("etcd", etcd_command(&binaries, &ports, leash.folder()), &leash)?;
        let servers = Mutex::new(Servers { etcd, apiserver: None, controllers: None });
        let started = Self {
            servers,
            binaries,
            credentials,
            ports,
            users: AtomicUsize::new(0),
            installing: tokio::sync::Mutex::default(),
            leash,
        };
        started.await_ready(async || started.etcd_listens()).await?;
        started.start_apiserver().await?;
        Ok(started)
    }

    /// Ends the servers and removes the folder; returns when nothing is left. Dropping does the same, but cannot fail.
    ///
    /// # Errors
    /// If the folder could not be removed.
    pub async fn shutdown(self) -> Result<()> {
        let folder = self.leash.folder().to_owned();
        spawn_blocking(move || drop(self)).await?;
        ensure!(!folder.exists(), "cannot remove {}", folder.display());
        Ok(())
    }

    /// A folder that goes with the control plane, for whatever else should.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.leash.folder()
    }

    /// Makes a process end with this process or this control plane, whichever ends first; see [`Leash::tie`].
    pub fn tie<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.leash.tie(command)
    }

    /// A kubeconfig for the administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.credentials.admin
    }

    /// The command-line client, of the servers' version.
    #[must_use]
    pub fn kubectl(&self) -> &Path {
        &self.binaries.kubectl
    }

    /// A client for the administrator and for the current runtime. It retries nothing.
    ///
    /// # Errors
    /// If the kubeconfig is gone.
    pub async fn admin(&self) -> Result<Client> {
        client_of(&self.credentials.admin).await
    }

    /// Creates a namespace, and returns its name: `prefix`, a hyphen and what makes it unique.
    ///
    /// # Errors
    /// If the API server does not answer, or refuses the name.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let metadata = ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let created = Api::all(self.admin().await?).create(&PostParams::default(), &namespace).await?;
        Ok(created.name_any())
    }

    /// Installs a `CustomResourceDefinition`, or brings it up to date, and returns when its objects are served.
    ///
    /// The garbage collector looks for new kinds of objects every 30 s only. It is started again if the definition is new or
    /// has changed, so that what these objects own is collected at once.
    ///
    /// # Errors
    /// If it is refused, or not served within 30 s.
    pub async fn install_crd(&self, yaml: &str) -> Result<()> {
        let manifest: serde_json::Value = serde_yaml::from_str(yaml).context("the manifest is not YAML")?;
        let name = manifest["metadata"]["name"].as_str().context("the manifest has no name")?;
        let admin = self.admin().await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
        // Tests that begin together all want it: one is enough to start the controllers again.
        let _alone = self.installing.lock().await;
        let before = definitions.get_opt(name).await?;
        let params = PatchParams::apply("moneygo-controlplane").force();
        let installed = definitions.patch(name, &params, &Patch::Apply(&manifest)).await?;
        if before.is_some_and(|before| before.metadata.generation == installed.metadata.generation) {
            return Ok(());
        }
        let established = await_condition(definitions, name, conditions::is_crd_established());
        timeout(ESTABLISHED_LIMIT, established).await.with_context(|| format!("{name} is not established"))??;
        timeout(ESTABLISHED_LIMIT, await_served(&admin, &installed))
            .await
            .with_context(|| format!("{name} is not served"))?;
        self.restart_controllers()
    }

    /// The API server's own metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        Ok(self.admin().await?.request_text(request).await?)
    }

    /// The processes of the API server and of etcd, to look at what they use. The API server's is another after an outage.
    ///
    /// # Errors
    /// If the API server does not run.
    pub fn processes(&self) -> Result<Processes> {
        let servers = self.servers();
        let apiserver = servers.apiserver.as_ref().context("the API server does not run")?;
        Ok(Processes { apiserver: apiserver.process.id(), etcd: servers.etcd.process.id() })
    }

    /// Begins an outage: the API server is killed, and connections to it are refused. What was stored stays stored.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop_apiserver(&self) -> Result<()> {
        let mut servers = self.servers();
        ensure!(servers.apiserver.is_some(), "the API server does not run");
        servers.controllers = None;
        servers.apiserver = None;
        Ok(())
    }

    /// Ends an outage: same port, same data, same users. Returns when the API server is ready.
    ///
    /// # Errors
    /// If it runs already, or does not become ready within a minute.
    pub async fn start_apiserver(&self) -> Result<()> {
        let command = apiserver_command(&self.binaries, &self.ports, &self.credentials, self.leash.folder());
        {
            let mut servers = self.servers();
            ensure!(servers.apiserver.is_none(), "the API server runs already");
            servers.apiserver = Some(Server::spawn("kube-apiserver", command, &self.leash)?);
        }
        let admin = self.admin().await?;
        let ready = self.await_ready(async || is_ready(&admin).await).await;
        if ready.is_err() {
            self.servers().apiserver = None;
            return ready;
        }
        self.restart_controllers()
    }

    /// Begins an outage of the other kind: connections are accepted, and nothing is answered.
    ///
    /// # Errors
    /// If the API server does not run.
    pub fn pause_apiserver(&self) -> Result<()> {
        let servers = self.servers();
        let apiserver = servers.apiserver.as_ref().context("the API server does not run")?;
        halt(&apiserver.process).context("cannot stop the API server")
    }

    /// Lets a paused API server go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume_apiserver(&self) -> Result<()> {
        let servers = self.servers();
        let apiserver = servers.apiserver.as_ref().context("the API server does not run")?;
        kill_process(Pid::from_child(&apiserver.process), Signal::CONT).context("cannot signal the API server")
    }

    /// Makes the store stand still, and with it every request that is not answered from a cache.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn pause_etcd(&self) -> Result<()> {
        halt(&self.servers().etcd.process).context("cannot stop etcd")
    }

    /// Lets a paused store go on.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn resume_etcd(&self) -> Result<()> {
        kill_process(Pid::from_child(&self.servers().etcd.process), Signal::CONT).context("cannot signal etcd")
    }

    pub(crate) fn audit_path(&self) -> PathBuf {
        audit_path(self.leash.folder())
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(crate) fn next_user(&self) -> usize {
        self.users.fetch_add(1, Ordering::Relaxed)
    }

    fn restart_controllers(&self) -> Result<()> {
        let command = controllers_command(&self.binaries, &self.credentials);
        let mut servers = self.servers();
        servers.controllers = None;
        servers.controllers = Some(Server::spawn("kube-controller-manager", command, &self.leash)?);
        Ok(())
    }

    fn etcd_listens(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.etcd)).is_ok()
    }

    async fn await_ready(&self, ready: impl AsyncFn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready().await {
            self.servers().check()?;
            if started.elapsed() > READY_LIMIT {
                bail!("not ready after {} s\n{}", READY_LIMIT.as_secs(), self.servers().last_started().log_tail());
            }
            sleep(READY_POLL).await;
        }
        Ok(())
    }

    // A test that panicked while it held the lock has left nothing half done.
    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Servers {
    fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.apiserver.as_mut().map_or(Ok(()), Server::check)
    }

    fn last_started(&self) -> &Server {
        self.apiserver.as_ref().unwrap_or(&self.etcd)
    }
}

impl Ports {
    fn choose() -> Result<Self> {
        // All are held until all are chosen, or one could be chosen twice.
        let held = [free_port()?, free_port()?, free_port()?];
        let [etcd, etcd_peers, apiserver] = held.map(|(port, _listener)| port);
        Ok(Self { etcd, etcd_peers, apiserver })
    }
}

fn free_port() -> Result<(u16, TcpListener)> {
    for _ in 0..100 {
        let random = u128::from_str_radix(&random_hex()?, 16)? % PORTS.len() as u128;
        let port = PORTS.start + u16::try_from(random)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok((port, listener));
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// A child process and where it logs to. Dropping it kills it, and waits until it is gone and its port is free.
struct Server {
    name: &'static str,
    log: PathBuf,
    process: Child,
}

impl Server {
    fn spawn(name: &'static str, mut command: Command, leash: &Leash) -> Result<Self> {
        let log = leash.folder().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let process = leash
            .tie(&mut command)
            // Proxies and the like are for the tests, not for servers on loopback.
            .env_clear()
            .env("TMPDIR", leash.folder())
            .current_dir(leash.folder())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, log, process })
    }

    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("{} ended early ({status})\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let tail = || {
            let mut log = File::open(&self.log)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        let tail = tail().unwrap_or_else(|error| error.to_string().into_bytes());
        format!("the end of {}'s log:\n{}", self.name, String::from_utf8_lossy(&tail))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn etcd_command(binaries: &Binaries, ports: &Ports, folder: &Path) -> Command {
    let clients = format!("http://127.0.0.1:{}", ports.etcd);
    let peers = format!("http://127.0.0.1:{}", ports.etcd_peers);
    let mut command = Command::new(&binaries.etcd);
    command
        .arg("--unsafe-no-fsync")
        .arg("--log-level=warn")
        .arg(flag("data-dir", &folder.join("etcd")))
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"));
    command
}

fn apiserver_command(binaries: &Binaries, ports: &Ports, credentials: &Credentials, folder: &Path) -> Command {
    let mut command = Command::new(&binaries.apiserver);
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd))
        .arg(format!("--secure-port={}", ports.apiserver))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
        .args(["--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://kubernetes.default.svc"])
        .args(["--authorization-mode=RBAC", "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"])
        .arg(flag("cert-dir", folder))
        .arg(flag("tls-cert-file", &credentials.certificate))
        .arg(flag("tls-private-key-file", &credentials.key))
        .arg(flag("service-account-key-file", &credentials.service_accounts_public_key))
        .arg(flag("service-account-signing-key-file", &credentials.service_accounts_key))
        .arg(flag("token-auth-file", &credentials.tokens_file))
        .arg(flag("audit-policy-file", &folder.join("audit-policy.json")))
        .arg(flag("audit-log-path", &audit_path(folder)))
        // Recorded before the answer is sent, and in one file: a mark stays a mark.
        .args(["--audit-log-mode=blocking", "--audit-log-maxsize=10000"]);
    command
}

fn controllers_command(binaries: &Binaries, credentials: &Credentials) -> Command {
    let mut command = Command::new(&binaries.controller_manager);
    command
        .arg("--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller")
        .args(["--leader-elect=false", "--secure-port=0", "--use-service-account-credentials=false"])
        .args(["--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-namespace-syncs=10"])
        .arg(flag("kubeconfig", &credentials.controllers));
    command
}

fn flag(name: &str, path: &Path) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(format!("--{name}="));
    flag.push(path);
    flag
}

fn audit_path(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}

async fn is_ready(client: &Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    matches!(timeout(PROBE_LIMIT, client.request_text(request)).await, Ok(Ok(_)))
}

/// Established is said a moment before it is so.
async fn await_served(client: &Client, definition: &CustomResourceDefinition) {
    let spec = &definition.spec;
    let Some(version) = spec.versions.iter().find(|version| version.served) else {
        return;
    };
    let path = format!("/apis/{}/{}/{}?limit=1", spec.group, version.name, spec.names.plural);
    loop {
        let request = http::Request::get(&path).body(Vec::new());
        if let Ok(request) = request
            && client.request_text(request).await.is_ok()
        {
            return;
        }
        sleep(READY_POLL).await;
    }
}

/// A client that does what it is told: no retries that a test does not see, no proxy.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
