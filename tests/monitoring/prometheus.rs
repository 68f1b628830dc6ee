//! A real Prometheus, and promtool.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moneygo_controlplane::{ControlPlane, Prometheus};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const START_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// The executables. Without them the test fails, and says what to install.
pub async fn programs() -> Prometheus {
    let found = tokio::task::spawn_blocking(moneygo_controlplane::prometheus).await.unwrap();
    found.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Runs promtool in a folder, with that input. What it printed, or what it complained about.
pub fn promtool(program: &Path, folder: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut promtool = Command::new(program);
    promtool.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// A running Prometheus that scrapes and evaluates each second. Dropping it ends it.
pub struct Server {
    process: Child,
    address: SocketAddr,
    folder: PathBuf,
}

/// Where it scrapes, and the labels that it gives what it finds there.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub labels: Value,
}

impl Server {
    /// With these files of rules, and nothing to scrape so far.
    pub async fn start(plane: &ControlPlane, rules: &[Value]) -> Self {
        let program = programs().await.server;
        let folder = plane.folder().join("prometheus");
        fs::create_dir_all(&folder).unwrap();
        for (number, rules) in rules.iter().enumerate() {
            fs::write(folder.join(format!("rules-{number}.yaml")), rules.to_string()).unwrap();
        }
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules-*.yaml"],
            "scrape_configs": [{
                "job_name": "moneygo-operator-metrics",
                "honor_labels": true,
                "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
            }],
        });
        fs::write(folder.join("prometheus.yaml"), config.to_string()).unwrap();
        let log = folder.join("log");
        let output = File::create(&log).unwrap();
        let mut command = Command::new(program);
        command
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let process = plane.tie(&mut command).spawn().expect("Prometheus runs");
        let mut server = Self { process, address: ([127, 0, 0, 1], 0).into(), folder };
        server.scrape(&[]);
        server.address = server.listening(&log).await;
        server.ready().await;
        server
    }

    async fn listening(&mut self, log: &Path) -> SocketAddr {
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            let line = text.lines().find(|line| line.contains("\"Listening on\""));
            if let Some(address) = line.and_then(|line| line.split("address=").nth(1)) {
                return address.trim().parse().unwrap();
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && started.elapsed() < START_LIMIT, "Prometheus does not listen:\n{text}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ready(&self) {
        let started = Instant::now();
        while !self.ask("/-/ready").await.starts_with("HTTP/1.0 200") {
            assert!(started.elapsed() < START_LIMIT, "Prometheus is not ready");
            tokio::time::sleep(POLL).await;
        }
    }

    /// From here on it scrapes these, and no others.
    pub fn scrape(&self, targets: &[Target]) {
        let entry = |target: &Target| json!({"targets": [target.address.to_string()], "labels": target.labels.clone()});
        let list: Vec<_> = targets.iter().map(entry).collect();
        let (new, place) = (self.folder.join("targets.new"), self.folder.join("targets.json"));
        fs::write(&new, json!(list).to_string()).unwrap();
        fs::rename(new, place).unwrap();
    }

    /// What a query returns now: a row for each series.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let data = self.get(&format!("/api/v1/query?query={}", escaped(query))).await;
        match &data["data"]["result"] {
            Value::Array(rows) => rows.clone(),
            other => panic!("{query}: {data} ({other})"),
        }
    }

    /// The alerts that are pending or firing.
    pub async fn alerts(&self) -> Vec<Value> {
        self.get("/api/v1/alerts").await["data"]["alerts"].as_array().cloned().expect("alerts")
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(path).await;
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{path}: {answer}"))
    }

    /// The whole answer.
    async fn ask(&self, path: &str) -> String {
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        tokio::time::timeout(ANSWER_LIMIT, asking).await.expect("an answer in time").expect("an answer")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}
