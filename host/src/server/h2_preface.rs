//! The client preface of HTTP/2 after ALPN has agreed on it (RFC 9113 section 3.4).
//!
//! hyper closes a connection with another beginning silently. A caller that agreed on HTTP/2 reads frames, so it gets GOAWAY. Without TLS,
//! the same bytes may be a bad HTTP/1.1 request, and get that response.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An empty SETTINGS frame, which must come first, and GOAWAY with no stream processed and `PROTOCOL_ERROR`.
const REFUSAL: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A stream whose preface was read. Reads return the preface again, then the rest.
#[derive(Debug)]
pub(super) struct Prefaced<S> {
    left: &'static [u8],
    stream: S,
}

/// Reads the preface. None: the bytes differ, and GOAWAY was sent.
///
/// # Errors
/// The stream's own. If this is cancelled, close the stream: part of it may have been read.
pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<Option<Prefaced<S>>> {
    let mut read = [0; PREFACE.len()];
    let mut count = 0;
    while count < read.len() && read[..count] == PREFACE[..count] {
        match stream.read(&mut read[count..]).await? {
            0 => break,
            more => count += more,
        }
    }
    if read == *PREFACE {
        return Ok(Some(Prefaced { left: PREFACE, stream }));
    }
    stream.write_all(&REFUSAL).await?;
    stream.shutdown().await?;
    Ok(None)
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        if own.left.is_empty() {
            return Pin::new(&mut own.stream).poll_read(cx, buffer);
        }
        let (now, later) = own.left.split_at(own.left.len().min(buffer.remaining()));
        buffer.put_slice(now);
        own.left = later;
        Poll::Ready(Ok(()))
    }
}

super::write_through::write_through!(Prefaced);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn given(bytes: &'static [u8], at_once: usize) -> (Option<Vec<u8>>, Vec<u8>) {
        let (mut caller, host) = tokio::io::duplex(64);
        let sends = async {
            for part in bytes.chunks(at_once) {
                let _ = caller.write_all(part).await;
                tokio::task::yield_now().await;
            }
            caller.shutdown().await.unwrap();
            let mut sent_back = Vec::new();
            caller.read_to_end(&mut sent_back).await.unwrap();
            sent_back
        };
        let reads = async {
            let mut stream = read(host).await.unwrap()?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            Some(all)
        };
        let (sent_back, all) = tokio::join!(sends, reads);
        (all, sent_back)
    }

    #[tokio::test]
    async fn a_preface_is_given_once_more_and_another_beginning_is_refused() {
        for at_once in [1, 5, 64] {
            let good = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more";
            assert_eq!(given(good, at_once).await, (Some(good.to_vec()), Vec::new()), "{at_once}");
            for bad in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\t", b"PRI", b""] {
                assert_eq!(given(bad, at_once).await, (None, REFUSAL.to_vec()), "{at_once} {bad:?}");
            }
        }
    }
}
