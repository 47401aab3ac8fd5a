//! Ten faults, as an operator on call meets them: `triage status` names cause and remedy, and `triage explain` shows a request.

use crate::{
    process::child,
    proxy::tls,
    support::{
        front::Front,
        redis_server::RedisServer,
        scripted::{Reply, Scripted, ok, status},
        stage::prebuilt,
    },
};
use rcgen::date_time_ymd;
use serde_json::Value;
use std::{fs, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Mutex,
    time::sleep,
};

/// One look-up: a command of the operator, and its output.
async fn look_up(front: &Front, arguments: &[&str]) -> String {
    let url = format!("http://{}", front.admin_address());
    let mut words: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    words.extend(["--admin".to_owned(), url]);
    let ended = tokio::task::spawn_blocking(move || child::run(&words.iter().map(String::as_str).collect::<Vec<_>>()));
    let ended = ended.await.unwrap();
    println!("$ triage {}\n{}{}", arguments.join(" "), ended.out, ended.err);
    ended.out
}

/// Repeats `triage status` until it names a condition: the host looks once a second.
async fn status_with(front: &Front, parts: &[&str]) -> String {
    let named = async {
        loop {
            let status = front.get_json("/api/v1/status").await["conditions"].to_string();
            if parts.iter().all(|part| status.contains(part)) {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let is_named = tokio::time::timeout(Duration::from_secs(60), named).await.is_ok();
    assert!(is_named, "{parts:?} not in {:#}", front.get_json("/api/v1/status").await["conditions"]);
    look_up(front, &["status"]).await
}

/// `triage explain` of the request that the status names.
async fn explained(front: &Front, status: &str) -> String {
    let (_, rest) = status.split_once("`triage explain ").unwrap_or_else(|| panic!("no request is named: {status}"));
    let id = rest.split('`').next().unwrap().to_owned();
    look_up(front, &["explain", &id]).await
}

fn api(base_url: &str, keys: &str) -> Front {
    Front::with_admin(
        "",
        &format!(
            "[upstreams.api]\nbase_url = \"{base_url}\"\n{keys}[upstreams.api.defaults]\nattempt_timeout = \"300ms\"\n\
             retry = {{ max_attempts = 1 }}\nbreaker = {{ failure_threshold = 3, jitter = 0 }}\n"
        ),
    )
}

fn title(fault: &str) {
    println!("\n=== {fault} ===");
}

/// Requests until the breaker opens; then the status and one failed request must name the cause.
async fn failing(fault: &str, front: &Front, cause: &str, remedy: &str, step: &str) {
    title(fault);
    for _ in 0..5 {
        front.ask("GET", "/hospitals", "").await;
    }
    let status = status_with(front, &["breaker-open", "requests-refused"]).await;
    assert!(status.contains(&format!("is open: 3 failures in a row: {cause}")), "{fault}: {status}");
    assert!(status.contains(remedy), "{fault}: {status}");
    assert!(status.contains(&format!("of the requests to api fail: {cause}.")), "{fault}: {status}");
    let timeline = explained(front, &status).await;
    assert!(timeline.contains(step), "{fault}: {timeline}");
}

#[tokio::test]
async fn an_upstream_that_answers_503_is_named_with_its_answer() {
    let upstream = Scripted::start(|_| status(503)).await;
    let front = api(&upstream.url(), "");
    failing("1. the upstream answers 503", &front, "answered 503", "look at its own health", "answered 503 after")
        .await;
}

#[tokio::test]
async fn an_upstream_that_is_slow_is_named_with_its_time_limit() {
    let upstream = Scripted::start(|_| Reply::Hang).await;
    let front = api(&upstream.url(), "");
    let remedy = "raise `attempt_timeout`";
    failing("2. the upstream is slow", &front, "no answer (timeout)", remedy, "failed (timeout) after").await;
}

#[tokio::test]
async fn an_upstream_that_resets_connections_is_named() {
    let upstream = Scripted::start(|_| Reply::Close).await;
    let front = api(&upstream.url(), "");
    let remedy = "closes connections in mid-request";
    failing("3. the upstream resets connections", &front, "no answer (reset)", remedy, "failed (reset) after").await;
}

#[tokio::test]
async fn an_expired_certificate_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let authority = tls::authority();
    let mut params = tls::params("localhost");
    (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let address = tls::serve(tls::shows(&authority, params), &[]).await;
    let file = folder.path().join("ca.pem");
    fs::write(&file, authority.pem()).unwrap();
    let keys = format!("ca_file = \"{}\"\n", file.display());
    let front = api(&format!("https://localhost:{}", address.port()), &keys);
    let remedy = "The upstream's certificate has expired; renew it";
    failing("4. the upstream's certificate has expired", &front, "no answer (tls, expired)", remedy, "expired").await;
}

#[tokio::test]
async fn a_name_without_an_address_is_named() {
    let front = api("http://hospital.invalid", "");
    failing("5. the upstream's name has no address", &front, "no answer (dns)", "has no address", "failed (dns)").await;
}

/// A host with shared state, and its event of the first loss.
async fn with_redis(redis: &RedisServer) -> (Front, Scripted) {
    let upstream = Scripted::start(|_| ok("", "{}")).await;
    let front = Front::with_admin(
        "",
        &format!("[state]\nurl = \"{}\"\n[upstreams.api]\nbase_url = \"{}\"\n", redis.url(), upstream.url()),
    );
    assert_eq!(front.send("POST", "/a", "", "row").await.status(), "200");
    (front, upstream)
}

#[tokio::test]
async fn redis_that_is_gone_is_named_with_the_writes_that_it_refuses_and_its_return_is_an_event() {
    title("6. Redis is down");
    let mut redis = RedisServer::start();
    let (front, _upstream) = with_redis(&redis).await;
    redis.kill();
    status_with(&front, &["state-down"]).await;
    assert_eq!(front.send("POST", "/a", "", "other row").await.status(), "503");
    let text = status_with(&front, &["state-down", "requests-refused"]).await;
    assert!(text.contains("Shared state cannot be reached. Writes that need it get 503 store-unavailable."), "{text}");
    assert!(text.contains("Check Redis at state.url"), "{text}");
    let refused = look_up(&front, &["requests", "--reason", "store-unavailable"]).await;
    assert!(refused.contains("503 store-unavailable"), "{refused}");
    redis.restart();
    let back = async {
        while !look_up(&front, &["events"]).await.contains("shared state can be reached again") {
            sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), back).await.expect("an event when shared state is back");
}

/// No request finds these faults: the host must look by itself.
#[tokio::test]
async fn redis_that_hangs_or_becomes_a_replica_is_named_without_traffic() {
    let redis = RedisServer::start();
    let (front, _upstream) = with_redis(&redis).await;
    redis.stop();
    status_with(&front, &["state-down"]).await;
    redis.go_on();
    let calm = async {
        while front.get_json("/api/v1/status").await["conditions"].to_string().contains("state-down") {
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), calm).await.expect("the condition ends");
    let _: String = redis.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    status_with(&front, &["state-down"]).await;
}

#[tokio::test]
async fn redis_that_is_full_is_named_as_full() {
    title("7. Redis is full");
    let redis = RedisServer::start();
    let (front, _upstream) = with_redis(&redis).await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let filled = async {
        loop {
            front.send("POST", "/a", "idempotency-key: \"k\"\r\n", "row").await;
            if front.get_json("/api/v1/status").await["conditions"].to_string().contains("state-refuses") {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), filled).await.expect("a condition");
    let text = status_with(&front, &["state-refuses"]).await;
    assert!(text.contains("Shared state is full and refuses calls (OOM)"), "{text}");
    assert!(text.contains("Raise Redis's maxmemory"), "{text}");
}

#[tokio::test]
async fn a_policy_that_traps_is_named_with_the_policy_that_serves_instead() {
    title("8. a new policy traps");
    let upstream = Scripted::start(|_| status(404)).await;
    let folder = tempfile::tempdir().unwrap();
    let front = Front::with_admin(
        "",
        &format!(
            "[policies]\ndir = \"{}\"\npoll = \"50ms\"\n[upstreams.api]\nbase_url = \"{}\"\n",
            folder.path().display(),
            upstream.url()
        ),
    );
    fs::copy(prebuilt("trap"), folder.path().join("new.tmp")).unwrap();
    fs::rename(folder.path().join("new.tmp"), folder.path().join("http-standard.wasm")).unwrap();
    let rolled_back = async {
        while !front.get_json("/api/v1/status").await["conditions"].to_string().contains("policy-rolled-back") {
            front.ask("GET", "/a", "").await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rolled_back).await.expect("a condition");
    let text = status_with(&front, &["policy-rolled-back"]).await;
    assert!(text.contains("trap") && text.contains("serves again"), "{text}");
    assert!(text.contains("Fix the component and copy it into the folder again"), "{text}");
    look_up(&front, &["policy", "list"]).await;
}

/// An upstream that serves one request after the other.
async fn one_at_a_time(each: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serves: &'static Mutex<()> = Box::leak(Box::default());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                    let turn = serves.lock().await;
                    sleep(each).await;
                    drop(turn);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_upstream_is_named_while_requests_are_shed() {
    title("9. the upstream is overloaded");
    let url = one_at_a_time(Duration::from_millis(10)).await;
    let toml = format!(
        "[upstreams.api]\nbase_url = \"{url}\"\n[upstreams.api.defaults]\nattempt_timeout = \"1s\"\n\
         retry = {{ max_attempts = 1 }}\nbreaker = {{ enabled = false }}\n"
    );
    let front = std::sync::Arc::new(Front::with_admin("", &toml));
    let crowd: Vec<_> = (0..150)
        .map(|_| {
            let front = std::sync::Arc::clone(&front);
            tokio::spawn(async move {
                loop {
                    front.ask("GET", "/a", "").await;
                }
            })
        })
        .collect();
    let text = status_with(&front, &["upstream-overloaded", "requests-refused"]).await;
    assert!(text.contains("Upstream api is overloaded") && text.contains("look at the upstream's load"), "{text}");
    let refused = look_up(&front, &["requests", "--reason", "overloaded"]).await;
    assert!(refused.contains("503 overloaded x "), "{refused}");
    for caller in crowd {
        caller.abort();
    }
}

#[tokio::test]
async fn one_bad_host_of_three_knows_that_it_is_the_bad_one() {
    title("10. one host of three cannot reach the upstream");
    let redis = RedisServer::start();
    let upstream = Scripted::start(|_| ok("", "{}")).await;
    let host = |base_url: &str| {
        Front::with_admin(
            "",
            &format!(
                "[state]\nurl = \"{}\"\n[upstreams.api]\nbase_url = \"{base_url}\"\n[upstreams.api.defaults]\n\
                 retry = {{ max_attempts = 1 }}\nbreaker = {{ failure_threshold = 3, jitter = 0 }}\n",
                redis.url()
            ),
        )
    };
    // Nothing listens there: as behind a firewall that only this host has.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (one, two, bad) = (host(&upstream.url()), host(&upstream.url()), host(&format!("http://{closed}")));
    for _ in 0..8 {
        for front in [&one, &two, &bad] {
            front.ask("GET", "/a", "").await;
        }
    }
    let text = status_with(&bad, &["breaker-open"]).await;
    assert!(text.contains("no answer (connect)") && text.contains("firewalls on the way"), "{text}");
    explained(&bad, &text).await;
    for front in [&one, &two] {
        let conditions = front.get_json("/api/v1/status").await["conditions"].clone();
        assert_eq!(conditions, Value::Array(Vec::new()), "the other hosts are well");
        look_up(front, &["status"]).await;
    }
}
