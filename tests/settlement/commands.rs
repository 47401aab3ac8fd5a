//! `triage records`, as an operator uses it.

use crate::{
    process::child::{Triage, run, triage},
    support::{
        front::Front,
        scripted::{Reply, Scripted, ok, status},
    },
};
use serde_json::Value;

/// A host whose upstream never responds to a write, so that each one stays unknown, since its policy cannot verify it.
async fn stage() -> (Front, Scripted) {
    let upstream = Scripted::start(|_| Reply::Close).await;
    let front = Front::with_admin("", &format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url()));
    (front, upstream)
}

async fn left_unknown(front: &Front, key: &str) {
    let unknown = front.send("POST", "/orders", &format!("Idempotency-Key: {key}\r\n"), "{}").await;
    assert_eq!(unknown.status(), "504", "{}", unknown.text());
}

/// Runs a command while the host in this process continues.
async fn ran(admin: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let all: Vec<String> =
        ["records"].iter().chain(arguments).chain(&["--admin", admin]).map(|own| (*own).to_owned()).collect();
    let ended = tokio::task::spawn_blocking(move || run(&all.iter().map(String::as_str).collect::<Vec<_>>()));
    let ended = ended.await.unwrap();
    (ended.code, ended.out, ended.err)
}

#[tokio::test]
async fn an_operator_lists_shows_and_resolves() {
    let (front, upstream) = stage().await;
    let admin = format!("http://{}", front.admin_address());
    assert_eq!(ran(&admin, &["list"]).await.1, "no write has an unknown effect\n");
    left_unknown(&front, "k-1").await;
    left_unknown(&front, "k-2").await;
    let (_, listed, _) = ran(&admin, &["list", "--json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let ids: Vec<&str> = listed.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{listed:?}");
    let (_, lines, _) = ran(&admin, &["list"]).await;
    assert!(lines.contains(&format!("{}  api/any", ids[0])) && lines.contains("not verified"), "{lines}");
    let (_, shown, _) = ran(&admin, &["show", ids[0]]).await;
    assert!(
        shown.contains("upstream  api")
            && shown.contains("write     sent ")
            && shown.contains("no host verifies the write"),
        "{shown}"
    );
    // Options for another outcome are refused before the host is asked.
    let (code, _, error) = ran(&admin, &["resolve", ids[0], "not-applied", "--status", "201"]).await;
    assert!(code == Some(1) && error.contains("need `applied`"), "{error}");
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), "{\"id\": 7}").unwrap();
    let file = body.path().to_str().unwrap();
    let (code, printed, error) = ran(&admin, &["resolve", ids[0], "applied", "--status", "201", "--body", file]).await;
    assert_eq!((code, printed), (Some(0), format!("{} is settled: applied\n", ids[0])), "{error}");
    let (code, _, error) = ran(&admin, &["resolve", ids[0], "applied"]).await;
    assert!(code == Some(1) && error.contains("no unsettled record has this id"), "{error}");
    let (code, _, error) = ran(&admin, &["show", ids[0]]).await;
    assert!(code == Some(1) && error.contains("no unsettled record with this id"), "{error}");
    assert_eq!(ran(&admin, &["resolve", ids[1], "not-applied"]).await.0, Some(0));
    assert_eq!(ran(&admin, &["list"]).await.1, "no write has an unknown effect\n");
    let mut replayed = 0;
    for key in ["k-1", "k-2"] {
        let again = front.send("POST", "/orders", &format!("Idempotency-Key: {key}\r\n"), "{}").await;
        replayed += usize::from(again.status() == "201" && again.text() == "{\"id\": 7}");
    }
    assert_eq!(replayed, 1);
    assert_eq!(upstream.seen().len(), 3, "the one that did not take effect is sent");
}

#[tokio::test]
async fn a_list_says_how_many_it_leaves_out() {
    let upstream = Scripted::start(|_| Reply::Close).await;
    let api = format!("[upstreams.api]\nbase_url = \"{}\"\n", upstream.url());
    let front = Front::with_admin("", &format!("{api}[upstreams.api.defaults]\nbreaker = {{ enabled = false }}\n"));
    for number in 0..1001 {
        left_unknown(&front, &format!("k-{number}")).await;
    }
    let admin = format!("http://{}", front.admin_address());
    let (_, lines, _) = ran(&admin, &["list"]).await;
    assert_eq!((lines.lines().count(), lines.lines().last()), (1001, Some("and 1 more")));
    let (_, listed, more) = ran(&admin, &["list", "--json"]).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&listed).unwrap().len(), 1000);
    assert!(more.contains("and 1 more"), "{more}");
}

/// A failed poll does not end a watch, and a record that is missing in a list is not reported as gone.
#[tokio::test]
async fn a_watch_goes_on_over_a_failed_look_and_asks_before_it_says_gone() {
    let id = "ab".repeat(32);
    let record = format!(r#"{{"id":"{id}","upstream":"api","endpoint":"any","sent_ms_ago":5,"verified_in_ms":null}}"#);
    let (mut lists, mut asked) = (0, 0);
    let own = format!("get /api/v1/records/{id} ");
    let host = Scripted::start(move |seen| {
        if seen.line().starts_with(&own) {
            asked += 1;
            let problem = "{\"type\":\"urn:triage:admin:not-found\",\"detail\":\"no\"}";
            let head = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n", problem.len());
            let none = head + problem;
            return if asked == 1 { ok("", &record) } else { Reply::Bytes(none.into()) };
        }
        lists += 1;
        match lists {
            1 => ok("", &format!("[{record}]")),
            2 => status(503),
            _ => ok("", "[]"),
        }
    })
    .await;
    let mut watch = Triage::start(&mut triage(&["records", "list", "--watch", "--admin", &host.url()]));
    let (lines, ended) = tokio::task::spawn_blocking(move || {
        let lines = [watch.says("unknown"), watch.logs("the watch continues"), watch.says("gone")];
        watch.signal("INT");
        (lines, watch.ended())
    })
    .await
    .unwrap();
    assert!(lines[0].contains(&id) && lines[2].contains(&id), "{lines:?}");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let asked = host.seen().iter().filter(|seen| seen.line().contains(&id)).count();
    assert_eq!(asked, 2, "it was there when it was asked for first");
}

/// The body's path may not be a regular file.
#[test]
fn a_body_that_is_no_file_is_refused_before_the_host_is_asked() {
    let id = "ab".repeat(32);
    let ended = run(&["records", "resolve", &id, "applied", "--body", "/dev/zero", "--admin", "http://127.0.0.1:1"]);
    assert!(ended.code == Some(1) && ended.err.contains("the path is not a regular file"), "{}", ended.err);
}

#[tokio::test]
async fn a_watch_tells_what_comes_and_goes() {
    let (front, _upstream) = stage().await;
    let admin = format!("http://{}", front.admin_address());
    let mut watch = Triage::start(&mut triage(&["records", "list", "--watch", "--admin", &admin]));
    left_unknown(&front, "k-1").await;
    let (mut watch, line) = tokio::task::spawn_blocking(move || {
        let line = watch.says("unknown");
        (watch, line)
    })
    .await
    .unwrap();
    let id = line.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(ran(&admin, &["resolve", &id, "not-applied"]).await.0, Some(0));
    let ended = tokio::task::spawn_blocking(move || {
        let line = watch.says("gone");
        watch.signal("INT");
        (line, watch.ended())
    });
    let (line, ended) = ended.await.unwrap();
    assert!(line.contains(&id), "{line}");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}
