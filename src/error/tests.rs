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
        let error = api(code, "Whatever", "");
        let found =
            (error.is_conflict(), error.is_not_found(), error.is_refusal(), error.is_forbidden(), error.reason());
        assert_eq!(found, (conflict, not_found, refusal, forbidden, reason), "{code}");
    }
    for (error, reason) in
        [(Error::Timeout { doing: "x" }, "Timeout"), (Error::Unreachable { doing: "x" }, "Unreachable")]
    {
        assert_eq!(error.reason(), reason);
        assert!(!error.is_conflict() && !error.is_not_found() && !error.is_refusal() && !error.is_forbidden());
        assert!(error.to_string().starts_with("cannot x: "), "{error}");
    }
}

#[test]
fn only_what_rbac_says_is_repeated() {
    let rbac =
        r#"secrets "t" is forbidden: User "u" cannot update resource "secrets" in API group "" in the namespace "n""#;
    let error = api(403, "Forbidden", rbac);
    assert_eq!(error.to_string(), format!("cannot write the Secret: the API server answered 403 Forbidden: {rbac}"));
    for message in ["admission webhook denied: canary", r#"Secret "t" is invalid: data[x]: Invalid value: "canary""#] {
        let error = api(422, "Invalid", message);
        assert_eq!(error.to_string(), "cannot write the Secret: the API server answered 422 Invalid");
        assert!(!format!("{error:?}").contains("canary"));
    }
}

#[test]
fn what_a_parser_says_is_not_repeated() {
    let parse = serde_json::from_str::<u8>("\"canary\"").unwrap_err();
    let error = Error::of("read the Secret", &kube::Error::SerdeError(parse));
    assert!(matches!(error, Error::Unreachable { .. }));
    assert!(!format!("{error} {error:?}").contains("canary"));
}
