//! The handle that tests hold.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::ledger::{Grant, Mode, TokenState};
use crate::script::Script;
use crate::server;
use crate::state::{Outage, ProtectedCounts, RateLimit, Request, Shared, State, TimedOut};
use crate::tls;

/// How long a change to or from [`Outage::Refused`] may take.
const LISTENING_TIMEOUT: Duration = Duration::from_secs(10);

/// How a [`FakeMoneyGo`] begins. Unset, it is as documented by Money-Go: tokens of 30 days, the scope `api`, and no client.
#[derive(Default)]
pub struct Builder {
    state: State,
    listen: Option<SocketAddr>,
    tls_names: Option<Vec<String>>,
}

impl Builder {
    /// The address to listen on; a free port of 127.0.0.1 where unset.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// A client that may have tokens.
    #[must_use]
    pub fn client(mut self, id: &str, secret: &str) -> Self {
        self.state.secrets.insert(id.to_owned(), secret.to_owned());
        self
    }

    /// Accepts every client that is not known with any secret; a known one still needs its own.
    #[must_use]
    pub fn any_client(mut self) -> Self {
        self.state.settings.any_client = true;
        self
    }

    /// The lifetime of tokens: at most a hundred years. A fraction of a second is sent as one.
    #[must_use]
    pub fn expires_in(mut self, lifetime: Duration) -> Self {
        self.state.settings.expires_in = lifetime;
        self
    }

    /// The scopes that may be asked for, singly or several separated by spaces.
    #[must_use]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.state.settings.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// Allows every scope that is not empty.
    #[must_use]
    pub fn any_scope(mut self) -> Self {
        self.state.settings.scopes = None;
        self
    }

    /// What a new grant does to earlier ones.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.state.settings.mode = mode;
        self
    }

    /// How often a client may ask; unlimited where unset.
    #[must_use]
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.state.settings.rate_limit = Some(limit);
        self
    }

    /// What every token begins with (`mgt_` where unset), so that a test can search for tokens where none may be.
    #[must_use]
    pub fn token_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.state.settings.token_prefix);
        self
    }

    /// Serves TLS with a fresh certificate for `localhost`, `127.0.0.1` and `::1`; see [`FakeMoneyGo::ca_pem`].
    #[must_use]
    pub fn tls(self) -> Self {
        self.tls_names(Vec::<String>::new())
    }

    /// Serves TLS; the certificate is also for these DNS names and IP addresses.
    #[must_use]
    pub fn tls_names<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        let more = names.into_iter().map(Into::into);
        self.tls_names.get_or_insert_default().extend(more);
        self
    }

    /// Serves `/_admin/` to whoever asks: the ledger with its tokens, the scripts, the modes.
    #[must_use]
    pub fn admin(mut self) -> Self {
        self.state.settings.admin = true;
        self
    }

    /// Starts it on the current tokio runtime.
    ///
    /// # Errors
    /// Where the address cannot be listened on, or a name for the certificate is none.
    pub async fn start(self) -> io::Result<FakeMoneyGo> {
        let tls = self.tls_names.as_deref().map(tls::generate).transpose()?;
        let (acceptor, ca_pem) = tls.map(|tls| (tls.acceptor, tls.ca_pem)).unzip();
        let listen = self.listen.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(self.state));
        let task = tokio::spawn(server::serve(Arc::clone(&shared), listener, address, acceptor));
        Ok(FakeMoneyGo { shared, address, ca_pem, task })
    }
}

/// A running stand-in. Dropping it ends it: the port is closed and every connection with it.
pub struct FakeMoneyGo {
    shared: Arc<Shared>,
    address: SocketAddr,
    ca_pem: Option<String>,
    task: JoinHandle<()>,
}

impl fmt::Debug for FakeMoneyGo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeMoneyGo").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Drop for FakeMoneyGo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where it is.
impl FakeMoneyGo {
    /// A stand-in to be set up and started.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Ends it, and returns when its port is closed.
    pub async fn shutdown(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The URL of the token endpoint.
    #[must_use]
    pub fn token_url(&self) -> String {
        format!("{}/token", self.url())
    }

    /// The URL that wants a live token.
    #[must_use]
    pub fn protected_url(&self) -> String {
        format!("{}/protected", self.url())
    }

    /// The certificate of the authority to trust, in PEM; `None` without TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }
}

/// What it does, changeable at any time.
impl FakeMoneyGo {
    /// Adds a client, or replaces the secret of one.
    pub fn add_client(&self, id: &str, secret: &str) {
        self.shared.write(|state| state.secrets.insert(id.to_owned(), secret.to_owned()));
    }

    /// Replaces a client's secret; its tokens live on. The same as [`add_client`](Self::add_client).
    pub fn set_secret(&self, id: &str, secret: &str) {
        self.add_client(id, secret);
    }

    /// Removes a client; its tokens live on.
    pub fn remove_client(&self, id: &str) {
        self.shared.write(|state| state.secrets.remove(id));
    }

    /// Whether clients that are not known are accepted.
    pub fn set_any_client(&self, accept: bool) {
        self.shared.write(|state| state.settings.any_client = accept);
    }

    /// The lifetime of tokens from now on: at most a hundred years.
    pub fn set_expires_in(&self, lifetime: Duration) {
        self.shared.write(|state| state.settings.expires_in = lifetime);
    }

    /// The lifetime of one client's tokens from now on; `None`: that of all.
    pub fn set_expires_in_of(&self, client: &str, lifetime: Option<Duration>) {
        self.shared.write(|state| match lifetime {
            Some(lifetime) => state.lifetimes.insert(client.to_owned(), lifetime),
            None => state.lifetimes.remove(client),
        });
    }

    /// The scopes that may be asked for; `None`: all.
    pub fn set_scopes(&self, scopes: Option<&[&str]>) {
        let scopes = scopes.map(|scopes| scopes.iter().map(|&scope| scope.to_owned()).collect());
        self.shared.write(|state| state.settings.scopes = scopes);
    }

    /// What a new grant does to earlier ones.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.write(|state| state.settings.mode = mode);
    }

    /// How often a client may ask; `None`: as often as it likes.
    pub fn set_rate_limit(&self, limit: Option<RateLimit>) {
        self.shared.write(|state| state.settings.rate_limit = limit);
    }

    /// Goes away, or comes back (`None`). In effect for every request that is answered after the return.
    ///
    /// # Errors
    /// Where the port could not be closed, or be had again, within 10 s.
    pub async fn set_outage(&self, outage: Option<Outage>) -> Result<(), TimedOut> {
        self.shared.outage.send_replace(outage);
        let wanted = outage != Some(Outage::Refused);
        let mut listening = self.shared.listening.subscribe();
        let change = listening.wait_for(|&now| now == wanted);
        let changed = tokio::time::timeout(LISTENING_TIMEOUT, change).await.is_ok();
        changed
            .then_some(())
            .ok_or_else(|| TimedOut { wanted: format!("listening = {wanted}"), timeout: LISTENING_TIMEOUT })
    }

    /// Adds to the scripted answers for one client.
    pub fn script(&self, client: &str, script: Script) {
        self.shared.write(|state| state.scripts.push(Some(client), script));
    }

    /// Adds to the scripted answers for all clients, and for requests that name none.
    pub fn script_all(&self, script: Script) {
        self.shared.write(|state| state.scripts.push(None, script));
    }

    /// Drops the scripts of one client. What they have begun goes on.
    pub fn clear_scripts_of(&self, client: &str) {
        self.shared.write(|state| state.scripts.clear(Some(client)));
    }

    /// Drops all scripts. What they have begun goes on.
    pub fn clear_scripts(&self) {
        self.shared.write(|state| state.scripts.clear(None));
    }

    /// Holds requests that arrive from now on, before anything is decided about them, until [`release`](Self::release).
    pub fn hold(&self) {
        self.shared.gates.requests.shut();
    }

    /// Holds answers from now on, after the grant was made and recorded, until [`release`](Self::release).
    pub fn hold_answers(&self) {
        self.shared.gates.answers.shut();
    }

    /// Lets go of all that is held, and holds nothing more.
    pub fn release(&self) {
        self.shared.gates.release();
    }
}

/// What it saw.
impl FakeMoneyGo {
    /// Every grant, in the order of issuing.
    #[must_use]
    pub fn ledger(&self) -> Vec<Grant> {
        self.shared.read(|state| state.ledger.grants().to_vec())
    }

    /// One client's grants, in the order of issuing.
    #[must_use]
    pub fn grants_of(&self, client: &str) -> Vec<Grant> {
        self.shared.read(|state| state.ledger.grants_of(client))
    }

    /// What a token was at some instant.
    #[must_use]
    pub fn state_of(&self, token: &str, at: SystemTime) -> TokenState {
        self.shared.read(|state| state.ledger.state_of(token, at))
    }

    /// Every request, in the order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.read(|state| state.requests.clone())
    }

    /// One client's requests, in the order of arrival.
    #[must_use]
    pub fn requests_of(&self, client: &str) -> Vec<Request> {
        self.shared.read(|state| state.requests_of(client).cloned().collect())
    }

    /// How many requests arrived.
    #[must_use]
    pub fn request_count(&self) -> usize {
        self.shared.read(|state| state.requests.len())
    }

    /// How many requests arrived that name this client.
    #[must_use]
    pub fn request_count_of(&self, client: &str) -> usize {
        self.shared.read(|state| state.requests_of(client).count())
    }

    /// How many requests were given each status; `None` are those that have no answer.
    #[must_use]
    pub fn status_counts(&self) -> BTreeMap<Option<u16>, usize> {
        self.shared.read(|state| {
            state.requests.iter().fold(BTreeMap::new(), |mut counts, request| {
                *counts.entry(request.status).or_default() += 1;
                counts
            })
        })
    }

    /// How many connections were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How often `/protected` was asked.
    #[must_use]
    pub fn protected_counts(&self) -> ProtectedCounts {
        self.shared.read(|state| state.protected)
    }

    /// How many requests are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.gates.waiting()
    }
}

/// Waiting for it.
impl FakeMoneyGo {
    /// Waits until a client has at least `count` grants, and returns them all.
    ///
    /// # Errors
    /// Where it has fewer at the timeout.
    pub async fn wait_for_grants(&self, client: &str, count: usize, timeout: Duration) -> Result<Vec<Grant>, TimedOut> {
        let enough = |state: &State| {
            let ledger = &state.ledger;
            (ledger.count_of(client) >= count).then(|| ledger.grants_of(client))
        };
        self.shared.wait(format!("{count} grants of {client}"), timeout, enough).await
    }

    /// Waits until there are at least `count` grants of all clients together, and returns them all.
    ///
    /// # Errors
    /// Where there are fewer at the timeout.
    pub async fn wait_for_total_grants(&self, count: usize, timeout: Duration) -> Result<Vec<Grant>, TimedOut> {
        let enough = |state: &State| {
            let grants = state.ledger.grants();
            (grants.len() >= count).then(|| grants.to_vec())
        };
        self.shared.wait(format!("{count} grants"), timeout, enough).await
    }

    /// Waits until at least `count` requests of a client have arrived, answered or not, and returns them all.
    ///
    /// # Errors
    /// Where there are fewer at the timeout.
    pub async fn wait_for_requests(
        &self,
        client: &str,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Request>, TimedOut> {
        let enough = |state: &State| {
            let requests: Vec<_> = state.requests_of(client).cloned().collect();
            (requests.len() >= count).then_some(requests)
        };
        self.shared.wait(format!("{count} requests of {client}"), timeout, enough).await
    }

    /// Waits until at least `count` requests of a client were given this status, and returns those.
    ///
    /// # Errors
    /// Where there are fewer at the timeout.
    pub async fn wait_for_status(
        &self,
        client: &str,
        status: u16,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Request>, TimedOut> {
        let enough = |state: &State| {
            let given = state.requests_of(client).filter(|request| request.status == Some(status));
            let requests: Vec<_> = given.cloned().collect();
            (requests.len() >= count).then_some(requests)
        };
        self.shared.wait(format!("{count} answers {status} to {client}"), timeout, enough).await
    }

    /// Waits until at least `count` requests are held.
    ///
    /// # Errors
    /// Where there are fewer at the timeout.
    pub async fn wait_for_held(&self, count: usize, timeout: Duration) -> Result<(), TimedOut> {
        self.shared.gates.wait_for_waiting(count, timeout).await
    }
}
