//! A smoke test of the sockets.

use crate::emulator::{Call, Emulator, Fault, Faults, Options, When};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

const CREATE: &str = "POST /hospitals/ HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\
                      connection: close\r\n\r\n{\"name\":\"A\",\"address\":\"B\"}";

/// Sends one create on a new connection. Returns the bytes read, and whether the connection was reset.
async fn create(emulator: &Arc<Emulator>, faults: Faults) -> (String, bool) {
    emulator.set_faults(faults);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(Arc::clone(emulator).serve(listener, async move {
        let _ = stopped.await;
    }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let sent = stream.write_all(CREATE.as_bytes()).await;
    let mut read = Vec::new();
    let ended = stream.read_to_end(&mut read).await;
    drop(stop);
    server.await.unwrap();
    (String::from_utf8(read).unwrap(), sent.is_err() || ended.is_err())
}

fn always(fault: Fault) -> Faults {
    Faults::none().on(Call::Create, When::Always, fault)
}

#[tokio::test]
async fn answers_resets_and_cuts_travel_by_sockets() {
    let emulator = Emulator::new(Options::immediate());
    let (text, reset) = create(&emulator, Faults::none()).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\"id\":1") && !reset, "{text}");

    let (text, reset) = create(&emulator, always(Fault::ResetAfter)).await;
    assert_eq!((text.as_str(), reset, emulator.made()), ("", true, 2));

    let (text, _) = create(&emulator, always(Fault::CutShort)).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let announced: usize =
        head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    assert_eq!((body.len(), emulator.made()), (announced / 2, 3));

    let (text, reset) = create(&emulator, Faults::none().refuse(When::Always)).await;
    assert_eq!((text.as_str(), reset, emulator.made()), ("", true, 3));
}
