//! The API server's own record of what it was asked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

use crate::controlplane::ControlPlane;

/// What is recorded: every request and who made it, but no bodies. The stage that would only double the log is left out.
pub const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [{"level": "Metadata"}]
}"#;

/// A position in the audit log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(u64);

/// One request, at one stage. What does not apply to a request is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who asked: `admin`, a [`User`](crate::User)'s name, `system:kube-controller-manager`, `system:apiserver`.
    pub user: String,
    /// As RBAC names it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// `ResponseStarted` for a watch that began, `ResponseComplete` for a request or watch that ended, `Panic`.
    pub stage: String,
    /// When that stage was reached.
    pub at: Timestamp,
    /// The status code of the answer; 0 if there was none.
    pub code: u16,
    /// The path and the query.
    pub request_uri: String,
    /// What the client calls itself.
    pub user_agent: String,
    /// The API group; empty for the core group.
    pub api_group: String,
    /// The resource's plural name.
    pub resource: String,
    /// `status`, for example.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The object's name; empty where the request did not say it (`create` mostly does).
    pub name: String,
}

impl ControlPlane {
    /// The present end of the audit log, to read from later.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn audit_mark(&self) -> Result<AuditMark> {
        let mut log = self.audit_log()?;
        Ok(AuditMark(end_of_last_line(&mut log).context("cannot read the audit log")?))
    }

    /// What was recorded after `since`, for all users or for one.
    ///
    /// A request is recorded before its answer is sent: whoever has the answer finds the event here.
    ///
    /// # Errors
    /// If the log cannot be read or understood.
    pub fn audit_events(&self, mut since: AuditMark, user: Option<&str>) -> Result<Vec<AuditEvent>> {
        self.next_audit_events(&mut since, user)
    }

    /// The same, and moves the mark behind what was returned: for who follows the log.
    ///
    /// # Errors
    /// If the log cannot be read or understood.
    pub fn next_audit_events(&self, since: &mut AuditMark, user: Option<&str>) -> Result<Vec<AuditEvent>> {
        let mut log = self.audit_log()?;
        log.seek(SeekFrom::Start(since.0))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        // What follows the last end of line is still being written.
        let end = whole_lines(&bytes);
        since.0 += end as u64;
        let complete = str::from_utf8(&bytes[..end]).context("the audit log is not UTF-8")?;
        let events = complete.lines().map(parse).filter(|event| {
            let wanted = |event: &AuditEvent| user.is_none_or(|user| user == event.user);
            event.as_ref().map_or(true, wanted)
        });
        events.collect()
    }

    fn audit_log(&self) -> Result<File> {
        let path = self.audit_path();
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

/// How much is read at once in search of an end of line. An event has 1 KiB, mostly.
const BLOCK: u64 = 4096;

/// What comes after it is still being written: a file's length grows page by page, in the midst of a write, too.
fn end_of_last_line(log: &mut (impl Read + Seek)) -> io::Result<u64> {
    let mut end = log.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        log.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        log.by_ref().take(end - start).read_to_end(&mut block)?;
        let whole = whole_lines(&block);
        if whole > 0 {
            return Ok(start + whole as u64);
        }
        end = start;
    }
    Ok(0)
}

/// How many bytes of these are whole lines; 0 where none ends in them.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1)
}

fn parse(line: &str) -> Result<AuditEvent> {
    let raw: Raw = serde_json::from_str(line).context("an audit event is not what it should be")?;
    Ok(AuditEvent {
        user: raw.user.username,
        verb: raw.verb,
        stage: raw.stage,
        at: raw.stage_timestamp,
        code: raw.response_status.code,
        request_uri: raw.request_uri,
        user_agent: raw.user_agent,
        api_group: raw.object_ref.api_group,
        resource: raw.object_ref.resource,
        subresource: raw.object_ref.subresource,
        namespace: raw.object_ref.namespace,
        name: raw.object_ref.name,
    })
}

/// `audit.k8s.io/v1` Event, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    verb: String,
    stage: String,
    stage_timestamp: Timestamp,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: RawUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: RawObject,
    #[serde(default)]
    response_status: RawStatus,
}

#[derive(Deserialize)]
struct RawUser {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawObject {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    code: u16,
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::end_of_last_line;

    #[test]
    fn a_mark_never_points_into_a_line() {
        let endless = "x".repeat(10_000);
        let logs = [
            ("", 0),
            ("{\"kind\":\"Event\",", 0),
            ("{}\n", 3),
            ("{}\n{}\n", 6),
            ("{}\n{\"kind\":\"Event\",", 3),
            (&format!("{endless}\n"), 10_001),
            (&format!("{{}}\n{endless}"), 3),
            (&endless, 0),
        ];
        for (log, end) in logs {
            assert_eq!(end_of_last_line(&mut Cursor::new(log)).unwrap(), end, "{log:.30}");
        }
        // The end of line at each place of a block, the first and the last among them.
        for before in 4090..4100 {
            let log = format!("{}\n{}", "x".repeat(before), "y".repeat(4096));
            assert_eq!(end_of_last_line(&mut Cursor::new(log)).unwrap(), before as u64 + 1);
        }
    }
}
