//! The commands on five objects: a healthy, a rejected, a conflicting, a suspended and an expiring one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use moneygo_controlplane::{Access, rule};
use serde_json::json;

use crate::plugin::{Plugin, Ran, deploy, entitle, file, mounting_pod, on_a_terminal};
use crate::stage::{self, Operator, Stage, client_secret_of};

const FIVE: [&str; 5] = ["conflicting", "expiring", "healthy", "rejected", "suspended"];

/// Prints what a command printed, for whoever wants to see it.
fn show(args: &str, ran: &Ran) {
    println!("$ kubectl moneygo {args}\n{}(exit code {})\n", ran.both(), ran.code);
}

async fn five(stage: &Stage) -> Operator<'_> {
    deploy(stage, "moneygo-operator", &[&format!("--watch-namespace={}", stage.namespace)], 1).await;
    entitle(stage).await;
    let operator = stage.operator().flag("--leader-elect").start().await;
    stage.subscribe("healthy", json!({})).await;
    stage.ready("healthy").await;
    mounting_pod(stage, "shop", "healthy").await;

    stage.moneygo.add_client("rejected", "another");
    stage.client_secret("rejected-client", "rejected", &client_secret_of("rejected")).await;
    stage.credential("rejected", json!({})).await;
    let data = [("password".to_owned(), ByteString(b"of somebody".to_vec()))];
    let metadata = ObjectMeta { name: Some("conflicting".to_owned()), ..ObjectMeta::default() };
    stage.apply_secret(&Secret { metadata, data: Some(data.into()), ..Secret::default() }).await;
    stage.subscribe("conflicting", json!({})).await;
    stage.subscribe("suspended", json!({})).await;
    stage.ready("suspended").await;
    stage.patch("suspended", json!({"spec": {"suspend": true}})).await;
    // Refreshed by itself after a minute, when all has been looked at.
    stage.moneygo.set_expires_in_of("expiring", Some(Duration::from_mins(10)));
    stage.subscribe("expiring", json!({"refresh": {"renewBeforePercentage": 90}})).await;
    stage.ready("expiring").await;
    stage.moneygo.set_secret("expiring", "another");
    stage.request_refresh("expiring", "now").await;

    stage.says("rejected", "Refreshed", "False", "InvalidClient").await;
    stage.says("conflicting", "Ready", "False", "TargetConflict").await;
    stage.says("suspended", "Refreshed", "Unknown", "Suspended").await;
    stage.says("expiring", "Refreshed", "False", "InvalidClient").await;
    operator
}

#[tokio::test(flavor = "multi_thread")]
async fn five_objects_are_shown_refreshed_and_diagnosed() {
    let stage = Stage::new("plugin").await;
    let operator = five(&stage).await;
    let plugin = Plugin::new(&stage);

    let shown = plugin.run(&["status"]);
    show("status", &shown);
    assert_eq!(shown.code, 1, "two have no token");
    for (name, state) in FIVE.iter().zip(["NotReady", "Failing", "Healthy", "NotReady", "Suspended"]) {
        let line = shown.stdout.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains(state), "{line}");
        assert_eq!(line.contains('▸'), matches!(*name, "healthy" | "expiring" | "suspended"), "{line}");
    }
    assert!(!shown.stdout.contains('\x1b'), "no colours on a pipe");
    show("status -o wide", &plugin.run(&["status", "-o", "wide"]));
    let healthy = plugin.run(&["status", "healthy"]);
    assert_eq!((healthy.code, healthy.stdout.lines().count()), (0, 2), "{healthy:?}");
    let everywhere = plugin.run(&["status", "-A"]);
    assert!(everywhere.stdout.contains(&stage.namespace), "{everywhere:?}");
    let computed = plugin.run(&["status", "healthy", "-o", "json"]).json();
    let lifetime = computed["tokens"][0]["lifetimeSecs"].as_i64().unwrap();
    assert!((2_592_000 - 1..=2_592_000).contains(&lifetime), "{lifetime}");
    assert_eq!(computed["tokens"][0]["state"], "Healthy");
    assert!(plugin.run(&["status", "-o", "yaml"]).stdout.contains("state: Healthy"));
    assert_eq!(plugin.run(&["status", "nobody"]).code, 2);

    let before = (stage.grants_of("healthy"), stage.moneygo.request_count_of("rejected"));
    for (name, code, says) in [
        ("healthy", 0, "new token, expires in 29 d"),
        ("rejected", 1, "InvalidClient"),
        ("conflicting", 1, "TargetConflict"),
        ("suspended", 1, "kubectl moneygo resume"),
        ("expiring", 1, "InvalidClient"),
    ] {
        let ran = plugin.run(&["refresh", name, "--timeout", "20s"]);
        show(&format!("refresh {name}"), &ran);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stdout.contains(says), "{ran:?}");
    }
    let after = (stage.grants_of("healthy"), stage.moneygo.request_count_of("rejected"));
    assert_eq!(after, (before.0 + 1, before.1 + 1), "each refresh is one request");
    let twice = plugin.run(&["refresh", "healthy", "healthy"]);
    assert_eq!((twice.code, twice.stdout.lines().count()), (0, 1), "{twice:?}");
    assert_eq!(stage.grants_of("healthy"), after.0 + 1, "it is asked for once");
    let all = plugin.run(&["refresh", "--all", "--timeout", "20s"]);
    assert_eq!((all.code, all.stdout.lines().count()), (1, 5), "{all:?}");

    for (name, code, causes) in [
        ("healthy", 0, &[][..]),
        ("rejected", 1, &["ClientRejected"]),
        ("conflicting", 1, &["TargetForeign"]),
        ("suspended", 0, &["Suspended"]),
        ("expiring", 0, &["ClientRejected"]),
    ] {
        let ran = plugin.run(&["doctor", name]);
        show(&format!("doctor {name}"), &ran);
        assert_eq!(ran.code, code, "{ran:?}");
        let found: Vec<_> =
            ran.stdout.lines().filter(|line| line.starts_with("  ✗") || line.starts_with("  !")).collect();
        assert_eq!(found.len(), causes.len(), "{ran:?}");
        assert!(found.iter().zip(causes).all(|(line, cause)| line.contains(cause)), "{ran:?}");
    }
    let report = plugin.run(&["doctor", "-o", "json"]).json();
    let diagnosed: Vec<_> = report["diagnoses"].as_array().unwrap().iter().map(|one| one["object"].clone()).collect();
    assert_eq!(
        diagnosed,
        FIVE.map(|name| json!(format!("{}/{name}", stage.namespace))),
        "in order, though looked at at once"
    );
    let searched = plugin.told_no_secret(&FIVE);
    println!("{searched} outputs hold no secret");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_suspended_and_resumed() {
    let stage = Stage::new("plugin-suspend").await;
    let operator = stage.operator().start().await;
    let plugin = Plugin::new(&stage);
    for name in ["one", "two"] {
        stage.subscribe(name, json!({})).await;
        stage.ready(name).await;
    }
    let ran = plugin.run(&["suspend", "one"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.starts_with("one suspended; its token ends in 29 d"), "{ran:?}");
    assert_eq!(stage.get("one").await.spec.suspend, Some(true));
    assert_eq!(stage.get("two").await.spec.suspend, None);
    let ran = plugin.run(&["suspend", "--all"]);
    assert!(ran.stdout.contains("one was suspended already") && ran.stdout.contains("two suspended"), "{ran:?}");
    let ran = plugin.run(&["resume", "-l", &format!("stage={}", stage.namespace)]);
    assert_eq!(ran.stdout, "one resumed\ntwo resumed\n");
    assert_eq!(stage.get("one").await.spec.suspend, None);
    assert_eq!(plugin.run(&["suspend", "nobody"]).code, 2);

    // Whoever may change one of them: the other is told of, and keeps nothing.
    let looks = rule("money-go.com", &["moneygocredentials"], &["get", "list"]);
    let mut changes = rule("money-go.com", &["moneygocredentials"], &["patch"]);
    changes.resource_names = Some(vec!["two".to_owned()]);
    let access = Access::default().namespace(&stage.namespace, [looks, changes]);
    let user = stage.plane.user(&access).await.unwrap();
    let ran = plugin.run_as(&user.kubeconfig, &["suspend", "--all"], None);
    show("suspend --all", &ran);
    assert_eq!((ran.code, ran.stdout.lines().count()), (1, 2), "{ran:?}");
    assert!(ran.stdout.starts_with("✗ one: cannot change ") && ran.stdout.contains("\ntwo suspended"), "{ran:?}");
    assert_eq!(stage.get("two").await.spec.suspend, Some(true));
    assert_eq!(plugin.run_as(&user.kubeconfig, &["suspend", "one"], None).code, 2);
    assert_eq!(plugin.run(&["suspend", "-l", "stage=nowhere"]).code, 2);
    plugin.told_no_secret(&["one", "two"]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_nobody_answers_is_told() {
    let stage = Stage::new("plugin-alone").await;
    let plugin = Plugin::new(&stage);
    stage.subscribe("payments", json!({})).await;
    let ran = plugin.run(&["refresh", "payments", "--timeout", "1s"]);
    show("refresh payments --timeout 1s", &ran);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("nobody may answer: there is no Deployment"), "{ran:?}");
    assert!(ran.stdout.contains("no answer within 1 s"), "{ran:?}");
    // The request stands, and is answered by whoever comes.
    let operator = stage.operator().start().await;
    stage.ready("payments").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_checked() {
    let stage = Stage::new("plugin-check").await;
    let plugin = Plugin::new(&stage);
    stage.subscribe("payments", json!({"scope": "api"})).await;
    let url = stage.moneygo.token_url();
    let secret = client_secret_of("payments");
    let path = file(&stage, "secret", format!("{secret}\n"));
    let path = path.to_str().unwrap();
    let check = |args: &[&str], input| {
        let args: Vec<_> = [&["check", "--token-url", &url], args].concat();
        plugin.run_as(stage.plane.kubeconfig(), &args, input)
    };
    for (args, input) in [
        (&["payments"][..], None),
        (&["--from-secret", "payments-client"], None),
        (&["--client-id", "payments", "--client-secret-file", path], None),
        (&["--client-id", "payments", "--client-secret-file", "-"], Some(secret.as_str())),
    ] {
        let ran = check(args, input);
        show(&format!("check {}", args.join(" ")), &ran);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
        assert!(ran.stderr.contains(&format!("Asking {url} (as --token-url says)")), "{ran:?}");
        assert!(
            ran.stderr.contains("cana… (") && ran.stderr.contains("expires_in 2592000 s, which is 30 d"),
            "{ran:?}"
        );
    }
    assert_eq!(stage.grants_of("payments"), 4);

    stage.client_secret("wrong", "payments", "canary-secret-that-is-wrong").await;
    stage.client_secret("padded", "payments", "canary-secret-that-is-padded\n").await;
    for (args, says) in [
        (&["--from-secret", "wrong"][..], "correct the client id and secret"),
        (&["--from-secret", "padded"], "has white space at an end"),
        (&["--from-secret", "payments-client", "--client-id-key", "id"], "is missing"),
        (&["--from-secret", "nothing"], "there is no Secret"),
        (&["payments", "--scope", "nonsense"], "scope"),
    ] {
        let ran = check(args, None);
        show(&format!("check {}", args.join(" ")), &ran);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
    assert_eq!(check(&["--client-id", "payments"], None).code, 2, "there is no secret");
    let somewhere = check(&["--from-secret", "payments-client", "-A"], None);
    assert!(somewhere.code == 2 && somewhere.stderr.contains("give -n"), "{somewhere:?}");
    let long = "x".repeat(64 * 1024 + 1);
    let long = check(&["--client-id", "payments", "--client-secret-file", "-"], Some(&long));
    assert!(long.code == 2 && long.stderr.contains("64 KiB"), "{long:?}");
    let away = plugin.run(&["check", "payments", "--token-url", "http://127.0.0.1:1/token"]);
    assert_eq!(away.code, 1, "{away:?}");
    let plain = plugin.run(&["check", "payments", "--token-url", "http://api.money-go.com/token"]);
    assert_eq!(plain.code, 2, "{plain:?}");

    let names = ["payments", "that-is-wrong", "that-is-padded"];
    assert!(plugin.told_no_secret(&names) >= 12);
    let shown = check(&["payments", "--show-token"], None);
    let granted = stage.moneygo.grants_of("payments");
    assert_eq!(shown.stdout.trim_end(), granted.last().unwrap().token);
    plugin.forget_last();
}

/// The client secret goes where the operator sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_checked_where_the_operator_asks() {
    let stage = Stage::new("plugin-endpoint").await;
    let plugin = Plugin::new(&stage);
    stage.subscribe("payments", json!({})).await;
    let url = stage.moneygo.token_url();
    let (watches, asks) = (format!("--watch-namespace={}", stage.namespace), format!("--token-url={url}"));
    deploy(&stage, "moneygo-operator", &[&watches, &asks], 1).await;
    for args in [&["check", "payments"][..], &["check", "--from-secret", "payments-client"]] {
        let ran = plugin.run(args);
        show(&args.join(" "), &ran);
        assert_eq!(ran.code, 0, "{ran:?}");
        let place = format!("{}/moneygo-operator", stage.own_namespace);
        assert!(ran.stderr.contains(&format!("Asking {url} (as {place} does)")), "{ran:?}");
    }
    // Found anywhere, a Deployment is believed where its account reads the Secrets anyway. Those of other tests come and go.
    let anywhere = || plugin.launch(stage.plane.kubeconfig(), &["check", "payments"], None);
    let grants = stage.grants_of("payments");
    let doubted = plugin.until_of(anywhere, "it is doubted", |ran| ran.stderr.contains("nothing shows that")).await;
    show("check payments", &doubted);
    assert_eq!((doubted.code, stage.grants_of("payments")), (2, grants), "{doubted:?}");
    entitle(&stage).await;
    plugin.until_of(anywhere, "it is believed", |ran| ran.code == 0).await;
    let grants = stage.grants_of("payments");
    deploy(&stage, "second", &[&watches, "--token-url=http://127.0.0.1:1/token"], 1).await;
    let torn = plugin.run(&["check", "payments"]);
    show("check payments", &torn);
    assert!(torn.code == 2 && torn.stderr.contains("give --token-url URL"), "{torn:?}");
    // Nor is it guessed by somebody who may not look.
    let reads = [rule("money-go.com", &["moneygocredentials"], &["get"]), rule("", &["secrets"], &["get"])];
    let user = stage.plane.user(&Access::default().namespace(&stage.namespace, reads)).await.unwrap();
    let blind = plugin.run_as(&user.kubeconfig, &["check", "payments"], None);
    show("check payments", &blind);
    assert!(blind.code == 2 && blind.stderr.contains("give --token-url URL"), "{blind:?}");
    assert_eq!(stage.grants_of("payments"), grants);
    plugin.told_no_secret(&["payments"]);
}

/// Whoever read it has gone.
#[test]
fn an_error_that_nobody_reads_is_an_error_still() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-moneygo"));
    let ended = command.args(["status", "--kubeconfig", "/nowhere"]).stderr(writer).status().unwrap();
    assert_eq!(ended.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_only_look_at_objects_is_told_what_could_not_be_checked() {
    let stage = Stage::new("plugin-limited").await;
    let plugin = Plugin::new(&stage);
    let looks = rule("money-go.com", &["moneygocredentials"], &["get", "list"]);
    let access = Access::default().namespace(&stage.namespace, [looks]);
    let user = stage.plane.user(&access).await.unwrap();
    let operator = stage.operator().flag("--leader-elect").start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    stage.credential("lonely", json!({})).await;
    stage.says("lonely", "Ready", "False", "CredentialsNotFound").await;

    let ran = plugin.run_as(&user.kubeconfig, &["doctor", "payments"], None);
    show("doctor payments   # as somebody who may only look at objects", &ran);
    assert_eq!(ran.code, 0, "{ran:?}");
    for what in ["credentials Secret", "target Secret", "Pods", "operator's Deployment", "namespace is being deleted"] {
        let told = ran.stdout.lines().any(|line| line.contains("could not check") && line.contains(what));
        assert!(told, "{what}: {ran:?}");
    }
    let ran = plugin.run_as(&user.kubeconfig, &["doctor", "lonely"], None);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("CredentialsNotFound"), "the operator's word: {ran:?}");
    assert_eq!(plugin.run_as(&user.kubeconfig, &["status"], None).code, 1);
    let refused = plugin.run_as(&user.kubeconfig, &["refresh", "payments"], None);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("cannot change"), "{refused:?}");
    let refused = plugin.run_as(&user.kubeconfig, &["status", "-A"], None);
    assert_eq!(refused.code, 2, "{refused:?}");
    plugin.told_no_secret(&["payments"]);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_completed() {
    let stage = Stage::new("plugin-words").await;
    let plugin = Plugin::new(&stage);
    stage.credential("payments", json!({})).await;
    stage.credential("invoices", json!({})).await;
    let completed = |args: &[&str]| plugin.run(args).stdout;
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let ran = plugin.run(&["completion", shell]);
        assert!(ran.code == 0 && ran.stdout.contains("kubectl-moneygo"), "{shell}: {ran:?}");
    }
    assert_eq!(completed(&["-n", &stage.namespace, "__complete", "re"]), "refresh\nresume\n:4\n");
    assert_eq!(completed(&["-n", &stage.namespace, "__complete", "status", "pay"]), "payments\n:4\n");
    assert_eq!(completed(&["-n", &stage.namespace, "__complete", "refresh", "--ti"]), "--timeout\n:4\n");
    assert!(plugin.run(&["version"]).stdout.starts_with("kubectl-moneygo 0."));
    assert_eq!(plugin.run(&["frobnicate"]).code, 2);
}

/// Not by that of the machine at hand, for which minutes would be allowed.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_judged_by_the_servers_clock() {
    let stage = Stage::new("plugin-leader").await;
    let plugin = Plugin::new(&stage);
    stage.credential("payments", json!({})).await;
    deploy(&stage, "moneygo-operator", &["--leader-elect-lease-name=late"], 1).await;
    let without = plugin.run(&["doctor", "payments"]);
    assert!(
        without.stdout.contains("/late is not there") && without.stdout.contains("create leases in"),
        "{without:?}"
    );
    let renewed = stage::now() - Duration::from_mins(2);
    let renewed = jiff::Timestamp::try_from(renewed).unwrap();
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "late"},
        "spec": {"holderIdentity": "pod", "leaseDurationSeconds": 15, "renewTime": format!("{renewed:.6}")}});
    let leases: Api<Lease> = Api::namespaced(stage.admin.clone(), &stage.own_namespace);
    leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
    let ran = plugin.run(&["doctor", "payments"]);
    show("doctor payments", &ran);
    assert!(ran.stdout.contains("NobodyLeads") && ran.stdout.contains("(30 s are allowed for clocks"), "{ran:?}");
    assert!(!ran.stdout.contains("create leases"), "it is there: {ran:?}");
}

/// The facts of each object once held all others: of so many, a gigabyte.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_needs_little_memory_for_many_objects() {
    const OBJECTS: usize = 600;
    let stage = Stage::new("plugin-many").await;
    stream::iter(0..OBJECTS)
        .for_each_concurrent(16, |number| {
            let (stage, name) = (&stage, format!("many-{number}"));
            async move { drop(stage.credential(&name, json!({})).await) }
        })
        .await;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -v 500000 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_kubectl-moneygo")]);
    command.args(["doctor", "-o", "json", "-n", &stage.namespace, "--operator-namespace", &stage.own_namespace]);
    let output = command.env("KUBECONFIG", stage.plane.kubeconfig()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "nobody works: {stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["diagnoses"].as_array().unwrap().len(), OBJECTS);
}

/// Through kubectl, which looks for plugins and their completion on the PATH.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl_finds_the_plugin_and_its_completion() {
    let stage = Stage::new("plugin-kubectl").await;
    stage.credential("payments", json!({})).await;
    let folders = [
        Path::new(env!("CARGO_BIN_EXE_kubectl-moneygo")).parent().unwrap(),
        Path::new(env!("CARGO_MANIFEST_DIR")),
        stage.plane.kubectl().parent().unwrap(),
        Path::new("/usr/bin"),
        Path::new("/bin"),
    ];
    let run = |args: &[&str]| {
        let mut command = Command::new(stage.plane.kubectl());
        command.args(args).env("KUBECONFIG", stage.plane.kubeconfig());
        let output = command.env("PATH", std::env::join_paths(folders).unwrap()).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let version = run(&["moneygo", "version"]);
    assert_eq!(version, format!("kubectl-moneygo {}\n", env!("CARGO_PKG_VERSION")));
    assert!(run(&["moneygo", "status", "-n", &stage.namespace]).contains("payments"));
    let completed = run(&["__complete", "moneygo", "re"]);
    assert!(completed.contains("refresh\nresume\n"), "{completed}");
    let completed = run(&["__complete", "moneygo", "status", "-n", &stage.namespace, "pa"]);
    assert!(completed.contains("payments\n"), "{completed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_colours_and_a_spinner() {
    let stage = Stage::new("plugin-terminal").await;
    let operator = stage.operator().start().await;
    stage.subscribe("payments", json!({})).await;
    stage.ready("payments").await;
    let shown = on_a_terminal(&stage, &["status"], &[]);
    assert!(shown.contains("\x1b[32m▸"), "{shown:?}");
    let plain = on_a_terminal(&stage, &["status"], &[("NO_COLOR", "1")]);
    assert!(plain.contains('▸') && !plain.contains('\x1b'), "{plain:?}");
    let ascii = on_a_terminal(&stage, &["status"], &[("LC_ALL", "C")]);
    assert!(ascii.contains(">---") && ascii.is_ascii(), "{ascii:?}");
    stage.moneygo.hold();
    // Nobody answers for two seconds: that long there is something to wait for.
    let refreshing = on_a_terminal(&stage, &["refresh", "payments", "--timeout", "2s"], &[]);
    stage.moneygo.release();
    assert!(refreshing.contains("⠋ waiting for payments (") && refreshing.contains("⠙ waiting"), "{refreshing:?}");
    assert!(refreshing.contains("✗\x1b[0m payments: no answer within 2 s"), "{refreshing:?}");
    operator.stop().await;
}
