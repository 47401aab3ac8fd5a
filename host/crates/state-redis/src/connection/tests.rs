//! Tests against Redis servers that they start themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::{
    secret::Secret,
    {
        Address, Loss, reply,
        test_server::{Proxy, RedisCluster, RedisServer, Way},
    },
};

static ECHO: Script = Script::new("echo", "return {KEYS[1], ARGV[1]}");
static COUNT: Script = Script::new("count", "return redis.call('INCR', KEYS[1])");
static WRITE: Script = Script::new("write", "return redis.call('SET', KEYS[1], string.rep('x', 100000))");

fn settings(url: &str) -> Settings {
    Settings {
        prefix: "test".to_owned(),
        // Long enough for a busy machine, because no call should time out here.
        timeout: Duration::from_secs(2),
        ..Settings::new(Address::parse(url).unwrap())
    }
}

fn open(url: &str) -> RedisConnection {
    opened(&settings(url))
}

fn opened(settings: &Settings) -> RedisConnection {
    // The log shows why a test failed.
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).with_test_writer();
    let _ = log.try_init();
    RedisConnection::open(settings, Clock::system(), Rng::system()).unwrap()
}

async fn echo(link: &RedisConnection, what: &str) -> Result<Vec<String>, LinkError> {
    let key = [link.keys().single("echo", what)];
    let answer = link.run(&ECHO, &key, &[what]).await?;
    Ok(reply::list(&answer).unwrap().iter().map(|item| reply::text(item).unwrap().to_owned()).collect())
}

async fn count(link: &RedisConnection) -> Result<i64, LinkError> {
    let key = [link.keys().single("count", "a")];
    link.run(&COUNT, &key, &[""; 0]).await.map(|answer| reply::whole(&answer).unwrap())
}

/// Polls until the background work is done.
async fn soon<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(found) = ask().await {
            return found;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("not in 20 s: {what}");
}

async fn comes_up(link: &RedisConnection) {
    soon("an answer", async || echo(link, "x").await.ok()).await;
}

#[tokio::test]
async fn a_script_runs_by_tcp_and_by_socket_and_is_loaded_again_without_an_error() {
    let server = RedisServer::start();
    for url in [server.url(), format!("unix://{}", server.socket().display())] {
        let link = open(&url);
        assert_eq!(echo(&link, "a").await.unwrap(), ["test:echo:{a}", "a"], "{url}");
        let () = server.ask(&["SCRIPT", "FLUSH"]);
        assert_eq!(echo(&link, "b").await.unwrap(), ["test:echo:{b}", "b"], "{url}, flushed");
    }
    let () = server.ask(&["CONFIG", "RESETSTAT"]);
    let link = open(&server.url());
    for _ in 0..10 {
        echo(&link, "c").await.unwrap();
    }
    // One or two checks of the server's identity after the flush, and never the script itself.
    assert!(server.calls("eval") < 10 && server.calls("evalsha") >= 10, "known by its digest");
}

#[tokio::test]
async fn a_password_is_taken_from_url_environment_and_file_and_shown_nowhere() {
    let server = RedisServer::with(&["--requirepass", "hush hush"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hush hush\n").unwrap();
    let with_url = settings(&format!("redis://:hush%20hush@127.0.0.1:{}", server.port()));
    let bare = settings(&format!("redis://:wrong@127.0.0.1:{}", server.port()));
    let from_file = Settings { password: Some(TokenSource::File(file.path().to_owned())), ..bare.clone() };
    let held = TokenSource::Environment(Secret::new("hush hush"));
    let from_environment = Settings { password: Some(held), ..bare.clone() };
    for settings in [with_url, from_file, from_environment] {
        let link = opened(&settings);
        echo(&link, "a").await.unwrap();
        assert!(!format!("{link:?} {settings:?}").contains("hush"));
    }
    let refused = opened(&Settings { timeout: Duration::from_millis(200), ..bare });
    assert!(matches!(echo(&refused, "a").await, Err(LinkError::Down)));
    let missing = Settings { password: Some(TokenSource::File("/missing".into())), ..settings(&server.url()) };
    let error = RedisConnection::open(&missing, Clock::system(), Rng::system()).unwrap_err();
    assert_eq!(error.to_string(), "state.password_file /missing cannot be read");
}

#[tokio::test]
async fn a_server_that_is_killed_costs_nothing_until_it_is_back_and_its_data_counts_as_lost() {
    let mut server = RedisServer::start();
    let link = open(&server.url());
    comes_up(&link).await;
    assert_eq!(link.lost_data(), None, "a new server has lost nothing");
    server.kill();
    let error = echo(&link, "a").await.unwrap_err();
    assert!(matches!(error, LinkError::Broke(_) | LinkError::Down), "{error:?}");
    soon("down", async || matches!(echo(&link, "a").await, Err(LinkError::Down)).then_some(())).await;
    server.restart();
    comes_up(&link).await;
    // The loss is known before the first reply.
    assert_eq!(link.lost_data().unwrap().why, Loss::Seen);
    let later = open(&server.url());
    comes_up(&later).await;
    assert_eq!(later.lost_data().unwrap().why, Loss::Told, "the server itself remembers it");
}

#[tokio::test]
async fn a_flush_and_an_eviction_count_as_lost_data() {
    let server = RedisServer::with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru"]);
    let link = open(&server.url());
    comes_up(&link).await;
    let mut losses = link.losses();
    losses.borrow_and_update();
    let () = server.ask(&["FLUSHALL"]);
    losses.changed().await.unwrap();
    assert_eq!(link.lost_data().unwrap().why, Loss::Seen);
    // Losses within 2 s count as one.
    sleep(Duration::from_millis(2_500)).await;
    for number in 0..60 {
        let key = [link.keys().single("big", number)];
        link.run(&WRITE, &key, &[""; 0]).await.unwrap();
    }
    losses.changed().await.unwrap();
}

#[tokio::test]
async fn time_outs_are_short_and_the_third_ends_the_waiting() {
    let server = RedisServer::start();
    let link = opened(&Settings { timeout: Duration::from_millis(60), ..settings(&server.url()) });
    comes_up(&link).await;
    server.stop();
    let mut times = 0;
    let error = loop {
        match count(&link).await.unwrap_err() {
            LinkError::TimedOut(_) => times += 1,
            other => break other,
        }
    };
    assert!(matches!(error, LinkError::Down) && times <= TIMEOUTS, "{times} time-outs, then {error:?}");
    server.go_on();
    comes_up(&link).await;
    assert_eq!(link.lost_data(), None, "the same process with the same data");
}

/// As in `thread_connection.rs`.
const TIMEOUTS: u32 = 3;

#[tokio::test]
async fn connections_that_are_cut_or_swallowed_are_built_again() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let link = opened(&Settings { timeout: Duration::from_millis(100), ..settings(&proxy.url()) });
    for way in [Way::Cut, Way::BlackHole] {
        comes_up(&link).await;
        proxy.set(way);
        soon("down", async || matches!(echo(&link, "a").await, Err(LinkError::Down)).then_some(())).await;
        proxy.set(Way::Open);
    }
    comes_up(&link).await;
}

#[tokio::test]
async fn a_replica_and_a_full_server_give_different_errors() {
    let (master, server) = (RedisServer::start(), RedisServer::start());
    let link = open(&server.url());
    comes_up(&link).await;
    let () = server.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    let error = count(&link).await.unwrap_err();
    assert!(
        matches!(error, LinkError::NotServing(_) | LinkError::Broke(_)) && !error.to_string().is_empty(),
        "{error:?}"
    );
    assert!(matches!(count(&link).await, Err(LinkError::Down)));
    let () = server.ask(&["REPLICAOF", "NO", "ONE"]);
    soon("a master again", async || count(&link).await.ok()).await;
    let full = RedisServer::with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    let link = open(&full.url());
    comes_up(&link).await;
    let error = count(&link).await.unwrap_err();
    assert!(matches!(&error, LinkError::Refused(_)) && !error.may_be_done(), "{error:?}");
    assert_eq!(echo(&link, "a").await.unwrap()[1], "a", "what writes nothing goes on");
}

#[tokio::test]
async fn a_late_answer_is_handed_over_and_so_is_one_whose_caller_has_gone() {
    static SLOW: Script = Script::new("slow", "return ARGV[1]");
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let link = opened(&Settings { timeout: Duration::from_millis(100), ..settings(&proxy.url()) });
    comes_up(&link).await;
    let (reported, mut late) = tokio::sync::mpsc::unbounded_channel();
    let ask = |word: &str| {
        let reported = reported.clone();
        let hand = move |answer: Value| drop(reported.send(reply::text(&answer).unwrap().to_owned()));
        link.run_or_late(&SLOW, vec![link.keys().single("a", "a")], vec![word.to_owned()], Instant::now(), hand)
    };
    ask("in time").await.unwrap();
    proxy.delay(Duration::from_millis(200));
    assert!(matches!(ask("late").await, Err(LinkError::TimedOut(_))));
    assert_eq!(late.recv().await.unwrap(), "late");
    let mut gone = Box::pin(ask("gone"));
    assert!(gone.as_mut().now_or_never().is_none());
    drop(gone);
    assert_eq!(late.recv().await.unwrap(), "gone");
    assert!(late.try_recv().is_err(), "a reply in time goes to its caller");
}

#[tokio::test]
async fn messages_are_pushed_and_a_new_subscription_is_announced() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let link = open(&proxy.url());
    let mut messages = link.pushed();
    comes_up(&link).await;
    let mut heard = async || timeout(Duration::from_secs(20), messages.recv()).await.expect("a message").unwrap();
    let publish = |text: &str| {
        let _: i64 = server.ask(&["PUBLISH", &link.keys().channel(), text]);
    };
    assert_eq!(heard().await, Pushed::Joined);
    publish("a");
    assert_eq!(heard().await, Pushed::Message("a".into()));
    // Silence is detected, because the next ping gets no reply.
    proxy.set(Way::BlackHole);
    sleep(Duration::from_millis(1_500)).await;
    proxy.set(Way::Open);
    assert_eq!(heard().await, Pushed::Joined);
    publish("b");
    assert_eq!(heard().await, Pushed::Message("b".into()));
}

#[test]
fn each_runtime_has_a_connection_of_its_own_and_one_that_ended_is_replaced() {
    let server = RedisServer::start();
    let link = open(&server.url());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for round in 0..3 {
        runtime().block_on(async { soon("an answer", async || count(&link).await.ok()).await });
        let own = link.clone();
        let other = std::thread::spawn(move || runtime().block_on(count(&own)).unwrap()).join().unwrap();
        assert_eq!(other, 2 * (round + 1));
    }
}

#[tokio::test]
async fn a_cluster_serves_from_every_slot() {
    let cluster = RedisCluster::start();
    let link = open(&cluster.url());
    comes_up(&link).await;
    for number in 0..50 {
        let name = number.to_string();
        assert_eq!(echo(&link, &name).await.unwrap()[1], name);
    }
    let counts: Vec<u64> = cluster.0.iter().map(|node| node.calls("evalsha")).collect();
    assert!(counts.iter().all(|calls| *calls > 0), "{counts:?}");
    let mut pushed = link.pushed();
    // The message arrives at any node that the subscription uses.
    soon("the message", async || {
        let _: i64 = cluster.0[2].ask(&["PUBLISH", &link.keys().channel(), "a"]);
        matches!(pushed.try_recv(), Ok(Pushed::Message(text)) if &*text == "a").then_some(())
    })
    .await;
    assert_eq!(link.lost_data(), None);
}

#[tokio::test]
async fn sentinel_names_the_master() {
    let master = RedisServer::start();
    let watched = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", master.port());
    let sentinel = RedisServer::sentinel(&watched);
    let link = open(&format!("redis+sentinel://127.0.0.1:{}/mymaster", sentinel.port()));
    comes_up(&link).await;
    assert_eq!(count(&link).await.unwrap(), 1);
    assert_eq!(master.ask::<i64>(&["GET", &link.keys().single("count", "a")]), 1);
}

#[tokio::test]
async fn a_server_with_tls_is_asked_by_tls_and_a_strangers_certificate_is_refused() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let Some(server) = RedisServer::tls(files[0], files[1]) else {
        eprintln!("skipped: this redis-server was built without TLS");
        return;
    };
    let url = format!("rediss://127.0.0.1:{}", server.tls_port());
    let link = opened(&Settings { ca_file: Some(certificate), ..settings(&url) });
    comes_up(&link).await;
    let stranger = opened(&Settings { timeout: Duration::from_millis(500), ..settings(&url) });
    assert!(matches!(echo(&stranger, "a").await, Err(LinkError::Down)));
}

/// Collects the lines of a log.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_step_is_a_span_with_its_outcome_and_nothing_else() {
    let server = RedisServer::start();
    let link = RedisConnection::open(
        &Settings { timeout: Duration::from_millis(300), ..settings(&server.url()) },
        Clock::system(),
        Rng::system(),
    )
    .unwrap();
    comes_up(&link).await;
    let written = Written::default();
    let log = {
        let written = written.clone();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
        let closes = tracing_subscriber::fmt::format::FmtSpan::CLOSE;
        log.with_span_events(closes).with_writer(move || written.clone()).finish()
    };
    let _log = tracing::subscriber::set_default(log);
    let reported = |outcome: &str, way: &str| {
        let text = String::from_utf8(std::mem::take(&mut *written.0.lock())).unwrap();
        let step = format!("request:state{{step=\"echo\" outcome=\"{outcome}\"}}");
        assert!(text.contains(&step), "{way}: {text}");
        assert!(!text.contains("s3cret") && !text.contains(&server.port().to_string()), "{way}: {text}");
    };
    let request = || tracing::debug_span!("request");
    echo(&link, "s3cret").instrument(request()).await.unwrap();
    reported("answered", "run");
    let key = vec![link.keys().single("echo", "s3cret")];
    let step = link.run_or_late(&ECHO, key, vec!["s3cret".to_owned()], Instant::now(), drop);
    step.instrument(request()).await.unwrap();
    reported("answered", "run_or_late");
    server.stop();
    echo(&link, "s3cret").instrument(request()).await.unwrap_err();
    reported("timed-out", "stopped");
    server.go_on();
}
