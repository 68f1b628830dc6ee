use kube::core::Status;

use super::*;

fn api(code: u16, reason: &str, message: &str) -> Error {
    let status = Status { code, reason: reason.into(), message: message.into(), ..Status::default() };
    Error::of("write the Secret", &kube::Error::Api(Box::new(status)))
}

#[test]
fn each_answer_of_the_api_server_has_its_class() {
    // (code, conflict, not found, refusal, forbidden, reason)
    let cases = [
        (400, false, false, true, false, "Refused"),
        (401, false, false, false, false, "ApiError"),
        (403, false, false, true, true, "Refused"),
        (404, false, true, false, false, "NotFound"),
        (405, false, false, true, false, "Refused"),
        (409, true, false, false, false, "Conflict"),
        (413, false, false, true, false, "Refused"),
        (422, false, false, true, false, "Refused"),
        (429, false, false, false, false, "ApiError"),
        (500, false, false, false, false, "ApiError"),
        (503, false, false, false, false, "ApiError"),
        (504, false, false, false, false, "ApiError"),
    ];
    for (code, conflict, not_found, refusal, forbidden, reason) in cases {
        let error = api(code, if code == 404 { "NotFound" } else { "Whatever" }, "");
        let found =
            (error.is_conflict(), error.is_not_found(), error.is_refusal(), error.is_forbidden(), error.reason());
        assert_eq!(found, (conflict, not_found, refusal, forbidden, reason), "{code}");
    }
    for (error, reason) in [
        (Error::Timeout { doing: "x", within: CALL_TIMEOUT }, "Timeout"),
        (Error::Unreachable { doing: "x" }, "Unreachable"),
    ] {
        assert_eq!(error.reason(), reason);
        assert!(!error.is_conflict() && !error.is_not_found() && !error.is_refusal() && !error.is_forbidden());
        assert!(error.to_string().starts_with("cannot x: "), "{error}");
    }
}

#[test]
fn a_gateways_404_is_not_the_api_servers() {
    let error = api(404, "Failed to parse error data", "<html>404</html>");
    assert_eq!((error.is_not_found(), error.is_refusal(), error.reason()), (false, false, "ApiError"));
}

#[test]
fn only_what_rbac_says_is_repeated() {
    let rbac =
        r#"secrets "t" is forbidden: User "u" cannot update resource "secrets" in API group "" in the namespace "n""#;
    let error = api(403, "Forbidden", rbac);
    assert_eq!(error.to_string(), format!("cannot write the Secret: the API server answered 403 Forbidden: {rbac}"));
    let of_a_webhook = format!("admission webhook \"w\" denied the request: {rbac}: canary");
    for (reason, message) in
        [("canary", "canary"), ("Forbidden", &of_a_webhook), ("Invalid", &rbac.replace("User", "canary"))]
    {
        let error = api(403, reason, message);
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        assert!(error.is_forbidden());
    }
    assert_eq!(
        api(403, "x", "").to_string(),
        "cannot write the Secret: the API server answered 403 for another reason"
    );
    for message in ["admission webhook denied: canary", r#"Secret "t" is invalid: data[x]: Invalid value: "canary""#] {
        let error = api(422, "Invalid", message);
        assert_eq!(error.to_string(), "cannot write the Secret: the API server answered 422 Invalid");
        assert!(!format!("{error:?}").contains("canary"));
    }
}

#[test]
fn what_quotes_credentials_is_told_in_words_of_our_own() {
    use std::os::unix::process::ExitStatusExt as _;
    let output = || std::process::Output {
        status: std::process::ExitStatus::from_raw(256),
        stdout: b"canary-token".to_vec(),
        stderr: b"canary-error".to_vec(),
    };
    let ran =
        || AuthError::AuthExecRun { cmd: "SECRET=canary-of-environment login".to_owned(), out: Box::new(output()) };
    let proxy_url = Box::new(http::Uri::from_static("socks5://user:canary-password@proxy"));
    let proxy = kube::Error::ProxyProtocolDisabled { proxy_url, protocol_feature: "socks5" };
    for error in [kube::Error::Auth(ran()), kube::Error::Service(Box::new(ran())), proxy] {
        assert!(!innermost(&error).contains("canary"), "{}", innermost(&error));
    }
    assert!(innermost(&kube::Error::Auth(ran())).contains("exec plugin"));
    let long = std::io::Error::other("\u{e9}".repeat(300));
    assert_eq!(innermost(&kube::Error::ReadEvents(long)).chars().count(), 200);
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    assert_eq!(innermost(&kube::Error::Service(Box::new(refused))), "connection refused");
}

#[test]
fn what_a_parser_says_is_not_repeated() {
    let parse = serde_json::from_str::<u8>("\"canary\"").unwrap_err();
    let error = Error::of("read the Secret", &kube::Error::SerdeError(parse));
    assert!(matches!(error, Error::Unreachable { .. }));
    assert!(!format!("{error} {error:?}").contains("canary"));
}
