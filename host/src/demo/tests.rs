#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Options, run};

/// Checks the demo's numbers, as its emulator counted them. Uses real sockets and real time: about 15 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_keeps_its_word() {
    let mut screen = Vec::new();
    let shown = run(&Options { no_pause: true }, &mut screen).await.unwrap();
    let text = String::from_utf8(screen).unwrap();
    assert_eq!((shown.asked, shown.hospitals, shown.duplicates), (21, 21, 0), "{text}");
    assert!(shown.faults > 0 && shown.refused > 0, "{text}");
    assert_eq!(shown.sent_while_open, 0, "{text}");
    assert!(shown.elapsed.as_secs() < 60, "{text}");
}
