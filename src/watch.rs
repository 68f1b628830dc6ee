//! The objects of a kind as they are, and then what changes of them.
//!
//! kube's `watcher` is for the same, and asks for the list in pages. But the API server has only the first page at hand: the others are those of
//! the same moment, for which it goes to etcd where it has kept no snapshot of it (KEP-4988: none older than etcd's last compaction, and none at all before
//! 1.34), which costs it eight times as much (docs/performance.md). So the list is asked for in one, and taken in as it comes. Where
//! it does not come to its end (the API server gives an answer a minute), the next attempt is made in pages.

mod list;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::pin::Pin;
use std::time::Duration;

use futures::io::AsyncBufRead;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use kube::api::{ListParams, WatchParams};
use kube::core::{ListMeta, Request, WatchEvent};
use kube::runtime::watcher::{Error, Event};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use list::List;

use crate::error::has_code;

/// Objects in a page, where the list is asked for in pages.
const PAGE: u32 = 500;
/// A watch that ends sooner, and has shown nothing, is one that fails: client-go's measure, too.
const LASTS_AT_LEAST: Duration = Duration::from_secs(1);
/// The API server ends a watch sooner: five minutes less ten seconds is what it is asked for.
const SILENT_AT_MOST: Duration = Duration::from_mins(5);
/// What says that the versions asked for are no longer kept.
const GONE: u16 = 410;
/// An answer that fails after so long was too long.
const LONG: Duration = Duration::from_secs(10);
/// What says that an answer was not ready in time.
const TOOK_TOO_LONG: u16 = 504;

/// What a watch tells.
pub enum Shown<K> {
    /// Of the objects.
    Event(Event<K>),
    /// That it goes on: from here on it tells what changes.
    Open,
}

type Body = Pin<Box<dyn AsyncBufRead + Send>>;
type Changes<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

enum State<K> {
    /// What is known, if anything, is too old.
    Begin,
    /// To be asked for, from the token of the last page on.
    Page(Option<String>),
    Listing(Box<List<Body, K>>),
    /// All is known as of that resource version.
    Listed(String),
    Watching(Watching<K>),
}

struct Watching<K> {
    version: String,
    changes: Changes<K>,
    /// Until something was shown.
    silent_since: Option<Instant>,
}

struct Watch {
    client: Client,
    request: Request,
    selector: Option<String>,
    in_pages: bool,
}

type Step<K> = (Option<Result<Shown<K>, Error>>, State<K>);

/// Lists the objects that a selector selects, of a namespace or of all, and watches them. Never ends: what fails is tried again as soon as it is
/// polled.
///
/// A watch that ends, breaks off, or is silent for longer than the API server lets one last, goes on where it was.
pub fn watch<K>(
    client: Client,
    namespace: Option<&str>,
    selector: Option<String>,
) -> impl Stream<Item = Result<Shown<K>, Error>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + 'static,
{
    let request = Request::new(K::url_path(&(), namespace));
    let watch = Watch { client, request, selector, in_pages: false };
    stream::unfold((watch, State::Begin), async |(mut watch, mut state)| {
        loop {
            let (shown, next) = watch.step(state).await;
            state = next;
            if let Some(shown) = shown {
                return Some((shown, (watch, state)));
            }
        }
    })
}

impl Watch {
    async fn step<K>(&mut self, state: State<K>) -> Step<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + 'static,
    {
        match state {
            State::Begin => show(Event::Init, State::Page(None)),
            State::Page(from) => {
                let asked = Instant::now();
                match self.list::<K>(from).await {
                    Ok(list) => (None, State::Listing(Box::new(list))),
                    Err(error) => {
                        // What is before the API server may not wait for as long as it does, and has other words for that.
                        let took_too_long = has_code(&error, TOOK_TOO_LONG) || asked.elapsed() >= LONG;
                        self.in_pages = took_too_long || self.in_pages && !has_code(&error, GONE);
                        fail(Error::InitialListFailed(error), State::Begin)
                    }
                }
            }
            State::Listing(mut list) => match list.next().await {
                Ok(Some(object)) => show(Event::InitApply(object), State::Listing(list)),
                Ok(None) => self.listed(list.into_metadata()),
                Err(error) => {
                    // Mostly it was too long for one answer.
                    self.in_pages = true;
                    fail(Error::InitialListFailed(error), State::Begin)
                }
            },
            State::Listed(version) => match self.changes::<K>(&version).await {
                Ok(changes) => {
                    let silent_since = Some(Instant::now());
                    (Some(Ok(Shown::Open)), State::Watching(Watching { version, changes, silent_since }))
                }
                Err(error) => {
                    let next = if has_code(&error, GONE) { State::Begin } else { State::Listed(version) };
                    fail(Error::WatchStartFailed(error), next)
                }
            },
            State::Watching(watching) => watching.step().await,
        }
    }

    async fn list<K>(&self, from: Option<String>) -> kube::Result<List<Body, K>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let params = ListParams {
            label_selector: self.selector.clone(),
            limit: self.in_pages.then_some(PAGE),
            continue_token: from,
            ..ListParams::default()
        };
        let request = if K::metadata_api() { self.request.list_metadata(&params) } else { self.request.list(&params) };
        let body = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
        Ok(List::new(Box::pin(body)))
    }

    fn listed<K>(&mut self, metadata: ListMeta) -> Step<K> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (filled(metadata.continue_), filled(metadata.resource_version)) {
            (Some(from), _) => (None, State::Page(Some(from))),
            (None, Some(version)) => {
                // What kept the API server from giving it in one may be over by the next time.
                self.in_pages = false;
                show(Event::InitDone, State::Listed(version))
            }
            (None, None) => fail(Error::NoResourceVersion, State::Begin),
        }
    }

    async fn changes<K>(&self, version: &str) -> kube::Result<Changes<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + 'static,
    {
        let params = WatchParams { label_selector: self.selector.clone(), ..WatchParams::default() };
        let request = if K::metadata_api() {
            self.request.watch_metadata(&params, version)
        } else {
            self.request.watch(&params, version)
        };
        Ok(self.client.request_events::<K>(request.map_err(kube::Error::BuildRequest)?).await?.boxed())
    }
}

impl<K: Resource> Watching<K> {
    async fn step(mut self) -> Step<K> {
        let Ok(next) = timeout(SILENT_AT_MOST, self.changes.next()).await else { return self.ended() };
        let change = match next {
            Some(Ok(change)) => change,
            Some(Err(error)) if !matches!(error, kube::Error::ReadEvents(_)) => {
                // Of one object something came that cannot be read, say: the others' changes come as they did.
                let next = if has_code(&error, GONE) { State::Begin } else { State::Watching(self) };
                return fail(Error::WatchFailed(error), next);
            }
            None | Some(Err(_)) => return self.ended(),
        };
        self.silent_since = None;
        let (event, version) = match change {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.meta().resource_version.clone();
                (Some(Event::Apply(object)), version)
            }
            WatchEvent::Deleted(object) => {
                let version = object.meta().resource_version.clone();
                (Some(Event::Delete(object)), version)
            }
            WatchEvent::Bookmark(mark) => (None, Some(mark.metadata.resource_version)),
            WatchEvent::Error(status) => {
                let next = if status.code == GONE { State::Begin } else { State::Listed(self.version) };
                return fail(Error::WatchError(status), next);
            }
        };
        match version.filter(|version| !version.is_empty()) {
            Some(version) => {
                self.version = version;
                (event.map(|event| Ok(Shown::Event(event))), State::Watching(self))
            }
            None => fail(Error::NoResourceVersion, State::Begin),
        }
    }

    /// It goes on from where it was; after a wait if the API server, or what is before it, ends each watch at once.
    fn ended(self) -> Step<K> {
        let failed = self.silent_since.is_some_and(|since| since.elapsed() < LASTS_AT_LEAST);
        let error = || Err(Error::WatchFailed(kube::Error::ReadEvents(ErrorKind::UnexpectedEof.into())));
        (failed.then(error), State::Listed(self.version))
    }
}

fn show<K>(event: Event<K>, next: State<K>) -> Step<K> {
    (Some(Ok(Shown::Event(event))), next)
}

fn fail<K>(error: Error, next: State<K>) -> Step<K> {
    (Some(Err(error)), next)
}
