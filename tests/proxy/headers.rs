//! Headers and statuses, in both directions.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted, ok},
};

#[tokio::test]
async fn headers_of_one_connection_are_not_forwarded() {
    let upstream = Scripted::start(|_| {
        ok(
            "connection: x-inner\r\nx-inner: 1\r\nkeep-alive: timeout=9\r\nproxy-connection: close\r\nx-kept: 2\r\n",
            "fine",
        )
    })
    .await;
    let front = Front::of(&upstream.url(), "");
    let headers = "Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
                   Proxy-Connection: close\r\nUpgrade: websocket\r\nX-Public: 2\r\n";
    let got = front.ask("GET", "/a", headers).await;
    let seen = &upstream.seen()[0];
    for name in ["connection", "x-private", "keep-alive", "te", "proxy-connection", "upgrade"] {
        assert!(seen.all(name).is_empty(), "{name} went on: {}", seen.head);
    }
    assert_eq!(seen.all("x-public"), ["2"]);
    for name in ["x-inner", "keep-alive", "proxy-connection"] {
        assert_eq!(got.header(name), None, "{name} was returned: {}", got.head);
    }
    assert_eq!((got.header("x-kept"), got.text().as_str()), (Some("2"), "fine"));
}

#[tokio::test]
async fn the_upstream_learns_who_asked_and_through_whom() {
    let upstream = Scripted::start(|_| ok("", "")).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a?b=c%20d", "X-Forwarded-For: 10.1.1.1\r\nVia: 1.0 before\r\n").await;
    let seen = &upstream.seen()[0];
    assert_eq!(seen.line(), "get /a?b=c%20d http/1.1");
    assert_eq!(seen.all("host"), [upstream.address.to_string()], "the host is the upstream's");
    assert_eq!(seen.all("x-forwarded-for").join(", "), "10.1.1.1, 127.0.0.1");
    assert_eq!(seen.all("x-forwarded-host"), ["triage.test"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.all("forwarded"), ["for=127.0.0.1;proto=http"]);
    assert_eq!(seen.all("via").join(", "), "1.0 before, 1.1 triage");
    assert_eq!(got.header("via"), Some("1.1 triage"));
}

#[tokio::test]
async fn nothing_is_added_that_the_caller_did_not_send() {
    let upstream = Scripted::start(|_| ok("", "")).await;
    let front = Front::of(&upstream.url(), "");
    front.ask("GET", "/a", "").await;
    let seen = &upstream.seen()[0];
    for name in ["accept", "user-agent", "accept-encoding", "referer", "cookie", "content-length"] {
        assert!(seen.all(name).is_empty(), "{name} was added: {}", seen.head);
    }
}

#[tokio::test]
async fn the_host_follows_no_redirect() {
    let answer = "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
    let upstream = Scripted::start(move |_| Reply::Bytes(answer.into())).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a", "").await;
    assert_eq!((got.status(), got.header("location")), ("307", Some("/elsewhere")));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn answers_without_a_body_stay_without_one() {
    let upstream = Scripted::start(|seen| {
        let answer = match seen.line().split(' ').next().unwrap() {
            "head" => "HTTP/1.1 200 OK\r\ncontent-length: 12345\r\netag: \"1\"\r\n\r\n",
            "delete" => "HTTP/1.1 204 No Content\r\nx-gone: 1\r\n\r\n",
            _ => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n",
        };
        Reply::Bytes(answer.into())
    })
    .await;
    let front = Front::of(&upstream.url(), "");
    // `Connection: close` marks the end of the response.
    let head = read_all(&front, "HEAD").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("content-length: 12345"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "a body follows a HEAD: {head}");
    for (method, expected) in [("DELETE", "http/1.1 204"), ("GET", "http/1.1 304")] {
        let got = read_all(&front, method).await;
        assert!(got.starts_with(expected), "{method}: {got}");
        assert!(got.ends_with("\r\n\r\n"), "{method}: {got}");
        assert!(!got.contains("transfer-encoding"), "{method}: {got}");
    }
}

async fn read_all(front: &Front, method: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(front.address()).await.unwrap();
    let request = format!("{method} /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    all.to_lowercase()
}

#[tokio::test]
async fn interim_answers_are_not_taken_for_the_answer() {
    let answer = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let upstream = Scripted::start(move |_| Reply::Bytes(answer.into())).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.ask("GET", "/a", "").await;
    assert_eq!((got.status(), got.text().as_str()), ("200", "ok"));
}

#[tokio::test]
async fn the_host_answers_an_expectation_itself() {
    let upstream = Scripted::start(|_| ok("", "made")).await;
    let front = Front::of(&upstream.url(), "");
    let got = front.send("POST", "/a", "Expect: 100-continue\r\n", "body").await;
    assert_eq!((got.status(), got.text().as_str()), ("200", "made"));
    let seen = &upstream.seen()[0];
    assert!(seen.all("expect").is_empty(), "{}", seen.head);
    assert_eq!(seen.body, b"body");
}

#[tokio::test]
async fn every_answer_says_what_the_host_did() {
    let upstream = Scripted::start(|_| ok("triage-attempts: 99\r\ntriage-verdict: forged\r\n", "")).await;
    let front = Front::of(&upstream.url(), "policy = \"http-standard\"\n");
    let got = front.ask("GET", "/a", "").await;
    assert_eq!(got.header("triage-attempts"), Some("1"));
    assert_eq!(got.header("triage-verdict"), Some("applied"));
    let policy = got.header("triage-policy").unwrap();
    let (name, digest) = policy.split_once(";digest=").unwrap();
    assert_eq!((name, digest.len()), ("http-standard", 12), "{policy}");
    assert_eq!(got.header("triage-replay"), None);
    let first = front.send("POST", "/a", "Idempotency-Key: \"k1\"\r\n", "x").await;
    assert_eq!((first.status(), first.header("triage-replay")), ("200", None));
    let again = front.send("POST", "/a", "Idempotency-Key: \"k1\"\r\n", "x").await;
    assert_eq!((again.status(), again.header("triage-replay")), ("200", Some("true")));
    assert_eq!(upstream.seen().len(), 2, "one GET and one POST");
}
