//! Which requests go through a proxy: those to Money-Go, as the usual variables say; never those to the API server, nor those to a
//! loopback address.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod stage;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use fake_moneygo::FakeMoneyGo;
use moneygo_operator::crd::Reason;
use serde_json::json;
use stage::{Stage, client_secret_of, condition};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A name that only the proxy can resolve.
const HOST: &str = "moneygo.test";

/// A proxy that knows `CONNECT` alone, and leads every tunnel to one place.
struct Proxy {
    address: SocketAddr,
    /// The first line of each request.
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// One that answers with this status, and leads to `target` if that is 200.
    async fn start(status: &'static str, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, status, target, Arc::clone(&log)));
            }
        });
        Self { address, asked, task }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, status: &str, target: SocketAddr, log: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    log.lock().unwrap().push(first);
    let answer = format!("HTTP/1.1 {status} canary\r\ncontent-length: 0\r\n\r\n");
    if status != "200" {
        let _ = stream.write_all(answer.as_bytes()).await;
        return;
    }
    let answer = "HTTP/1.1 200 Connection established\r\n\r\n";
    if let (Ok(mut tunnel), Ok(())) = (TcpStream::connect(target).await, stream.write_all(answer.as_bytes()).await) {
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut tunnel).await;
    }
}

/// What comes of a request.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Through the proxy, to the end.
    Proxied,
    /// The proxy is asked, and refuses.
    Refused,
    /// Not through the proxy; the name cannot be resolved.
    Lost,
}

/// The object's name, the variables (`PROXY` stands for the proxy's URL), the proxy's answer and what comes of it.
type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str, Way);

#[tokio::test(flavor = "multi_thread")]
async fn money_go_is_asked_through_the_proxy_that_the_variables_name() {
    let stage = Stage::new("proxy").await;
    let moneygo = FakeMoneyGo::builder().tls_names([HOST]).start().await.unwrap();
    let ca_file = stage.plane.folder().join("proxy-ca.pem");
    std::fs::write(&ca_file, moneygo.ca_pem().unwrap()).unwrap();
    let rows: [Row; 10] = [
        ("upper-case", &[("HTTPS_PROXY", "PROXY")], "200", Way::Proxied),
        ("lower-case", &[("https_proxy", "PROXY")], "200", Way::Proxied),
        ("for-all", &[("ALL_PROXY", "PROXY")], "200", Way::Proxied),
        (
            "exception-for-others",
            &[("HTTPS_PROXY", "PROXY"), ("NO_PROXY", "example.com,10.0.0.0/8")],
            "200",
            Way::Proxied,
        ),
        ("for-http-alone", &[("HTTP_PROXY", "PROXY")], "200", Way::Lost),
        ("exception", &[("HTTPS_PROXY", "PROXY"), ("NO_PROXY", HOST)], "200", Way::Lost),
        ("exception-for-the-domain", &[("HTTPS_PROXY", "PROXY"), ("no_proxy", "example.com, .test")], "200", Way::Lost),
        ("exception-for-all", &[("ALL_PROXY", "PROXY"), ("NO_PROXY", "*")], "200", Way::Lost),
        ("proxy-forbids", &[("HTTPS_PROXY", "PROXY")], "403", Way::Refused),
        ("proxy-wants-a-password", &[("HTTPS_PROXY", "PROXY")], "407", Way::Refused),
    ];
    for (name, variables, status, way) in rows {
        let proxy = Proxy::start(status, moneygo.address()).await;
        let mut builder = stage
            .operator()
            .without_flag("--token-url")
            .flag(format!("--token-url=https://{HOST}/token"))
            .flag(format!("--token-ca-file={}", ca_file.display()));
        for (variable, value) in variables {
            builder = builder.env(variable, value.replace("PROXY", &proxy.url()));
        }
        let operator = builder.start().await;
        moneygo.add_client(name, &client_secret_of(name));
        stage.subscribe(name, json!({})).await;
        if way == Way::Proxied {
            stage.ready(name).await;
        } else {
            let object = stage.says(name, "Refreshed", "False", Reason::EndpointUnavailable.as_str()).await;
            let message = condition(&object, "Refreshed").unwrap().message;
            assert!(message.contains("HTTPS_PROXY") && !message.contains("canary"), "{name}: {message}");
        }
        operator.stop().await;
        let expected = if way == Way::Lost { vec![] } else { vec![format!("CONNECT {HOST}:443 HTTP/1.1")] };
        let mut asked = proxy.asked();
        asked.dedup();
        assert_eq!(asked, expected, "{name}: and never for the API server");
        stage.delete(name).await;
    }
    println!("proxy: {} passed", rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loopback_address_is_asked_without_a_proxy() {
    let stage = Stage::new("proxy-loopback").await;
    let proxy = Proxy::start("403", stage.moneygo.address()).await;
    let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let builder = variables.into_iter().fold(stage.operator(), |builder, name| builder.env(name, proxy.url()));
    let operator = builder.start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    operator.stop().await;
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}
