use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use futures::io::Cursor;
use http::{Response, StatusCode};
use kube::api::PartialObjectMeta;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::caches::Guarded;
use crate::secret::SecretMeta;

/// Hands out what it has in pieces of so many bytes.
fn pieces(text: &str, length: usize) -> impl AsyncBufRead + Unpin + use<> {
    futures::io::BufReader::with_capacity(length, Cursor::new(text.as_bytes().to_vec()))
}

fn named(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "namespace": "payments", "uid": name, "resourceVersion": version.to_string(),
        "labels": {"says": "\"items\":[{}]}, \\ \u{1F511} \u{7f}"}}})
}

async fn names<K: Resource + DeserializeOwned>(text: &str, length: usize) -> kube::Result<(Vec<String>, ListMeta)> {
    let mut list = List::<_, K>::new(pieces(text, length));
    let mut names = Vec::new();
    while let Some(object) = list.next().await? {
        names.push(object.meta().name.clone().unwrap_or_default());
    }
    Ok((names, list.into_metadata()))
}

fn texts() -> [String; 3] {
    let (meta, items) =
        (json!({"resourceVersion": "7", "continue": "further"}), [named("a", 1), named("b", 2), named("c", 3)]);
    let items = Value::from(items.to_vec());
    [
        // As the API server sends its own kinds, those of a CRD, and what nobody has to send.
        format!(r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{meta},"items":{items}}}"#) + "\n",
        format!(r#"{{"apiVersion":"v1","items":{items},"kind":"SecretList","metadata":{meta}}}"#) + "\n",
        format!(
            "\n {{ \"more\" : [-1.5e+3, true, null, \"\\ud83d\\udd11\", {{\"items\": [-1]}}] ,\r\n\t\"items\" : {items:#} , \"metadata\" : {meta:#} }} \n"
        ),
    ]
}

#[tokio::test]
async fn a_list_is_the_same_in_pieces_of_any_length() {
    for text in texts() {
        for length in 1..=text.len() {
            let (names, meta) = names::<SecretMeta>(&text, length).await.unwrap();
            assert_eq!(names, ["a", "b", "c"], "in pieces of {length}: {text}");
            assert_eq!(meta.resource_version.as_deref(), Some("7"));
            assert_eq!(meta.continue_.as_deref(), Some("further"));
        }
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_anywhere_is_no_list() {
    for text in texts() {
        let whole = text.trim_end().len();
        for end in (0..whole).filter(|end| text.is_char_boundary(*end)) {
            for length in [1, 64, text.len()] {
                let found = names::<SecretMeta>(&text[..end], length).await;
                let error = found.expect_err(&text[..end]).to_string();
                assert!(error.contains("unexpected end of file"), "{error}, after {}", &text[..end]);
            }
        }
    }
}

#[tokio::test]
async fn a_list_of_nothing_has_no_object() {
    for items in ["[]", " [ ] ", "null"] {
        let text = format!(r#"{{"items":{items},"metadata":{{"resourceVersion":"7"}}}}"#);
        let (names, meta) = names::<SecretMeta>(&text, 8).await.unwrap();
        assert_eq!((names.len(), meta.resource_version.as_deref()), (0, Some("7")));
    }
}

#[tokio::test]
async fn what_is_no_list_is_refused() {
    for text in [
        "[]",
        "<html></html>",
        "null",
        r#"{"items":[{"metadata":3}]}"#,
        r#"{"items":[}"#,
        "{{",
        r#"{"metadata":{"resourceVersion":"7"}}"#,
    ] {
        names::<SecretMeta>(text, 8).await.expect_err(text);
    }
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_no_other() {
    let items = json!([named("a", 1), {"metadata": {"name": "b"}, "spec": {"credentialsRef": [3]}}, named("c", 3)]);
    let text = json!({"metadata": {"resourceVersion": "7"}, "items": items}).to_string();
    for length in 1..=text.len() {
        assert_eq!(names::<Guarded>(&text, length).await.unwrap().0, ["a", "b", "c"]);
    }
}

/// What the API server answers, request by request, and what it was asked.
#[derive(Default)]
struct Script {
    answers: VecDeque<(StatusCode, String)>,
    asked: Vec<String>,
}

fn client(script: &Arc<Mutex<Script>>) -> Client {
    let script = Arc::clone(script);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let answer = {
            let mut script = script.lock().unwrap();
            script.asked.push(request.uri().query().unwrap_or_default().trim_start_matches('&').to_owned());
            script.answers.pop_front()
        };
        async move {
            let Some((code, text)) = answer else { return std::future::pending().await };
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap())
        }
    });
    Client::new(service, "default")
}

fn list(version: u32, from: &str, items: &[Value]) -> (StatusCode, String) {
    let meta = json!({"resourceVersion": version.to_string(), "continue": from});
    (StatusCode::OK, json!({"metadata": meta, "items": items}).to_string())
}

fn changes(changes: &[Value]) -> (StatusCode, String) {
    let lines: Vec<String> = changes.iter().map(Value::to_string).collect();
    (StatusCode::OK, lines.join("\n"))
}

fn change(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: u32) -> Value {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"resourceVersion": version.to_string()}});
    change("BOOKMARK", &object)
}

fn status(code: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "", "reason": "", "code": code})
}

fn in_words(shown: Result<Shown<SecretMeta>, Error>) -> String {
    let name = |object: SecretMeta| object.meta().name.clone().unwrap_or_default();
    match shown {
        Ok(Shown::Open) => "open".to_owned(),
        Ok(Shown::Event(Event::Init)) => "init".to_owned(),
        Ok(Shown::Event(Event::InitApply(object))) => format!("listed {}", name(object)),
        Ok(Shown::Event(Event::InitDone)) => "done".to_owned(),
        Ok(Shown::Event(Event::Apply(object))) => format!("applied {}", name(object)),
        Ok(Shown::Event(Event::Delete(object))) => format!("deleted {}", name(object)),
        Err(Error::InitialListFailed(_)) => "no list".to_owned(),
        Err(Error::WatchStartFailed(_)) => "no watch".to_owned(),
        Err(Error::WatchFailed(_)) => "failed".to_owned(),
        Err(Error::WatchError(status)) => format!("error {}", status.code),
        Err(Error::NoResourceVersion) => "no version".to_owned(),
    }
}

/// What is shown until nothing more is answered, and what was asked.
async fn told(answers: impl IntoIterator<Item = (StatusCode, String)>, wait: Duration) -> (Vec<String>, Vec<String>) {
    let script = Arc::new(Mutex::new(Script { answers: answers.into_iter().collect(), asked: Vec::new() }));
    let mut shown = Box::pin(watch::<SecretMeta>(client(&script), Some("payments"), Some("team=a".to_owned())));
    let mut told = Vec::new();
    while let Ok(Some(next)) = tokio::time::timeout(Duration::from_mins(1), shown.next()).await {
        told.push(in_words(next));
        tokio::time::advance(wait).await;
    }
    let asked = script.lock().unwrap().asked.clone();
    (told, asked)
}

const LIST: &str = "labelSelector=team%3Da";
const WATCH: &str = "watch=true&timeoutSeconds=290&labelSelector=team%3Da&allowWatchBookmarks=true&resourceVersion=";

#[tokio::test(start_paused = true)]
async fn the_list_comes_in_one_and_the_watch_goes_on_from_it() {
    let shows =
        [change("ADDED", &named("c", 8)), change("MODIFIED", &named("a", 9)), change("DELETED", &named("b", 10))];
    let answers = [list(7, "", &[named("a", 1), named("b", 2)]), changes(&shows), changes(&[bookmark(12)])];
    let (told, asked) = told(answers, Duration::from_secs(2)).await;
    let begin = ["init", "listed a", "listed b", "done", "open"];
    assert_eq!(told, [&begin[..], &["applied c", "applied a", "deleted b", "open"]].concat());
    // It goes on from the last that it has shown, a bookmark among it.
    assert_eq!(asked, [LIST.to_owned(), format!("{WATCH}7"), format!("{WATCH}10"), format!("{WATCH}12")]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_does_not_come_to_its_end_is_asked_for_in_pages() {
    let (code, whole) = list(7, "", &[named("a", 1), named("b", 2)]);
    let half = whole.split_at(whole.find("\"b\"").unwrap()).0.to_owned();
    let pages = [list(7, "further", &[named("a", 1)]), list(7, "", &[named("b", 2)])];
    let (told, asked) = told([(code, half)].into_iter().chain(pages), Duration::ZERO).await;
    assert_eq!(told, ["init", "listed a", "no list", "init", "listed a", "listed b", "done"]);
    let first = format!("{LIST}&limit=500");
    assert_eq!(asked, [LIST.to_owned(), first.clone(), format!("{first}&continue=further"), format!("{WATCH}7")]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_listed_again() {
    let gone = (StatusCode::GONE, status(410).to_string());
    let answers = [
        list(7, "", &[]),
        changes(&[bookmark(8), change("ERROR", &status(410))]),
        list(9, "", &[]),
        gone,
        list(11, "", &[]),
        changes(&[change("ERROR", &status(500))]),
    ];
    let (told, asked) = told(answers, Duration::ZERO).await;
    let again = ["init", "done", "open", "error 410", "init", "done", "no watch", "init", "done", "open", "error 500"];
    assert_eq!(told, again);
    // What is no sign of that lets the watch go on where it was.
    assert_eq!(asked.last(), Some(&format!("{WATCH}11")));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_at_once_with_nothing_shown_fails() {
    let answers = || [list(7, "", &[]), changes(&[]), changes(&[bookmark(8)]), changes(&[])];
    let (at_once, _) = told(answers(), Duration::ZERO).await;
    assert_eq!(at_once, ["init", "done", "open", "failed", "open", "open", "failed"]);
    let (later, _) = told(answers(), LASTS_AT_LEAST).await;
    assert_eq!(later, ["init", "done", "open", "open", "open"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_tried_again() {
    let refused = || (StatusCode::FORBIDDEN, status(403).to_string());
    let unversioned = (StatusCode::OK, json!({"metadata": {}, "items": []}).to_string());
    let answers = [refused(), refused(), unversioned, list(7, "", &[]), refused(), changes(&[bookmark(8)])];
    let (told, asked) = told(answers, Duration::ZERO).await;
    let begin = ["init", "no list", "init", "no list", "init", "no version", "init", "done", "no watch", "open"];
    assert_eq!(told, begin);
    assert!(asked[..4].iter().all(|asked| asked == LIST), "that is no reason for pages: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn pages_are_for_lists_that_take_too_long() {
    let late = || (StatusCode::GATEWAY_TIMEOUT, status(504).to_string());
    let gone = || (StatusCode::GONE, status(410).to_string());
    let aged = || changes(&[bookmark(8), change("ERROR", &status(410))]);
    let answers = [late(), list(7, "further", &[]), gone(), late(), list(9, "", &[]), aged(), list(11, "", &[])];
    let (_, asked) = told(answers, Duration::ZERO).await;
    let paged = format!("{LIST}&limit=500");
    let lists: Vec<_> = asked.iter().filter(|asked| !asked.starts_with("watch")).collect();
    // Pages that were too old are asked for whole again; and so is the next list, whatever the last took.
    assert_eq!(lists, [LIST, &paged, &format!("{paged}&continue=further"), LIST, &paged, LIST]);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_which_nothing_can_be_told_stops_no_other() {
    let unreadable = json!({"type": "ADDED", "object": {"metadata": 3}});
    let answers = [list(7, "", &[]), changes(&[unreadable, change("ADDED", &named("a", 8))])];
    let (told, _) = told(answers, Duration::ZERO).await;
    assert_eq!(told, ["init", "done", "open", "failed", "applied a"]);
}

#[tokio::test]
async fn metadata_alone_are_asked_for_where_no_more_is_wanted() {
    let accepts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&accepts);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        seen.lock().unwrap().push(request.headers().get(http::header::ACCEPT).cloned());
        let answer = list(7, "", &[]).1;
        async { Ok::<_, Infallible>(Response::new(Body::from(answer.into_bytes()))) }
    });
    let client = Client::new(service, "default");
    let mut secrets = Box::pin(watch::<SecretMeta>(client.clone(), None, None));
    let mut namespaces =
        Box::pin(watch::<PartialObjectMeta<k8s_openapi::api::core::v1::Namespace>>(client.clone(), None, None));
    let mut objects = Box::pin(watch::<Guarded>(client, None, None));
    for _ in 0..3 {
        // Listed, and its watch open.
        secrets.next().await.unwrap().ok().unwrap();
        namespaces.next().await.unwrap().ok().unwrap();
        objects.next().await.unwrap().ok().unwrap();
    }
    let accepts = accepts.lock().unwrap();
    let of_metadata =
        accepts.iter().flatten().filter(|value| value.to_str().unwrap().contains("PartialObjectMetadata"));
    assert_eq!((of_metadata.count(), accepts.len()), (4, 6));
}
