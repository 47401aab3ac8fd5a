//! URLs of the upstream in its responses: callers that follow them stay on the host.

use crate::support::{
    front::Front,
    scripted::{Reply, Scripted},
};

/// Responds to everything with these header lines, in which `UP` stands for its own authority.
async fn upstream(headers: &'static str) -> Scripted {
    Scripted::start(move |seen| {
        let own = headers.replace("UP", seen.all("host")[0]);
        Reply::Bytes(format!("HTTP/1.1 307 Temporary Redirect\r\n{own}content-length: 0\r\n\r\n").into())
    })
    .await
}

#[tokio::test]
async fn a_redirect_to_the_upstream_leads_to_the_host_instead() {
    let upstream = upstream(
        "location: http://UP/v1/hospitals/\r\ncontent-location: http://UP/v1/hospitals/7\r\nrefresh: 5; url=http://UP/v1/x\r\n",
    )
    .await;
    let base = format!("{}/v1", upstream.url());
    let front = Front::of(&base, "path_prefix = \"/api\"\n");
    let got = front.ask("POST", "/api/hospitals", "").await;
    assert_eq!(got.header("location"), Some("http://triage.test/api/hospitals/"), "{}", got.head);
    assert_eq!(got.header("content-location"), Some("http://triage.test/api/hospitals/7"));
    assert_eq!(got.header("refresh"), Some("5; url=http://triage.test/api/x"));
    // The rewritten URL leads to the upstream's resource.
    front.ask("GET", "/api/hospitals/", "").await;
    assert_eq!(upstream.seen()[1].line(), "get /v1/hospitals/ http/1.1");
    // With another host name, and through a proxy with TLS.
    let got = front.raw("GET /api/a HTTP/1.1\r\nHost: other.test:8443\r\nX-Forwarded-Proto: https\r\n\r\n").await;
    assert_eq!(got.header("location"), Some("https://other.test:8443/api/hospitals/"));
    // The request's Host counts, not the one in a forwarding header.
    let got = front.raw("GET /api/a HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Host: evil.test\r\n\r\n").await;
    assert_eq!(got.header("location"), Some("http://a.test/api/hospitals/"));
    let request = http::Request::get("/api/a").body(bytes::Bytes::new()).unwrap();
    let got = front.host().call(request).await;
    assert_eq!(got.headers()["location"], "/api/hospitals/", "a caller in process named no host");
    let passed = Front::of(&base, "path_prefix = \"/api\"\nredirects = \"pass\"\n");
    let got = passed.ask("GET", "/api/a", "").await;
    assert_eq!(got.header("location"), Some(&*format!("http://{}/v1/hospitals/", upstream.address)));
}

#[tokio::test]
async fn a_relative_redirect_gets_the_prefix_and_others_stay() {
    let relative = upstream("location: /elsewhere?x=1\r\n").await;
    let front = Front::of(&relative.url(), "path_prefix = \"/api\"\n");
    assert_eq!(front.ask("GET", "/api/a", "").await.header("location"), Some("/api/elsewhere?x=1"));
    let foreign = upstream("location: https://login.test/UP\r\n").await;
    let front = Front::of(&foreign.url(), "path_prefix = \"/api\"\n");
    let got = front.ask("GET", "/api/a", "").await;
    assert_eq!(got.header("location"), Some(&*format!("https://login.test/{}", foreign.address)));
}

/// The stored response contains the upstream's URLs. Each replay is rewritten to the address that its caller used.
#[tokio::test]
async fn a_replay_leads_its_own_caller() {
    let upstream = Scripted::start(|seen| {
        let own = seen.all("host")[0];
        Reply::Bytes(
            format!("HTTP/1.1 201 Created\r\nlocation: http://{own}/rows/1\r\ncontent-length: 0\r\n\r\n").into(),
        )
    })
    .await;
    let front = Front::of(&upstream.url(), "path_prefix = \"/api\"\n");
    for (host, proto, replay) in [("one.test", "http", None), ("two.test:8443", "https", Some("true"))] {
        let got = front
            .raw(&format!(
                "POST /api/rows HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: {proto}\r\nIdempotency-Key: \"k\"\r\nContent-Length: 1\r\n\r\nx"
            ))
            .await;
        assert_eq!(got.header("location"), Some(&*format!("{proto}://{host}/api/rows/1")), "{}", got.head);
        assert_eq!(got.header("triage-replay"), replay, "{}", got.head);
    }
    assert_eq!(upstream.seen().len(), 1);
}
