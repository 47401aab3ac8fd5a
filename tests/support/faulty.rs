//! Faults between a host and any upstream, as proxies, networks and overloaded servers cause them.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use triage_core::rng::Rng;
use triage_engine::contract::{Failure, FailureKind};
use triage_upstream::{Inbound, Outbound, OutboundBody, Transport, full};

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Applied, then answered with this status.
    Failed(u16),
    /// Applied, then the connection is reset.
    Reset,
    /// The connection is reset at once, and the request is applied after a random time up to this.
    Late(Duration),
    /// Answered with this status at once, without an effect.
    Refused(u16),
}

/// A fault for the requests of one method, with a probability.
#[derive(Debug, Clone)]
pub struct Rule {
    pub method: Method,
    pub chance: f64,
    pub fault: Fault,
}

/// A transport that injects faults.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Transport>,
    entropy: Rng,
    rules: Mutex<Vec<Rule>>,
    injected: AtomicU64,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Transport>) -> Arc<Self> {
        let (rules, injected) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { inner, entropy: Rng::seeded(11), rules, injected })
    }

    /// Replaces the rules. The chances of several rules for one method partition one random draw.
    pub fn set(&self, rules: &[(Method, f64, Fault)]) {
        let rule = |(method, chance, fault): &(Method, f64, Fault)| Rule {
            method: method.clone(),
            chance: *chance,
            fault: *fault,
        };
        *self.rules.lock().unwrap() = rules.iter().map(rule).collect();
    }

    /// The number of requests with a fault.
    pub fn injected(&self) -> u64 {
        self.injected.load(Relaxed)
    }

    fn fault(&self, method: &Method) -> Option<Fault> {
        let mut draw = (self.entropy.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let rules = self.rules.lock().unwrap();
        for rule in rules.iter().filter(|rule| rule.method == *method) {
            if draw < rule.chance {
                self.injected.fetch_add(1, Relaxed);
                return Some(rule.fault);
            }
            draw -= rule.chance;
        }
        None
    }
}

/// The transport on clones of the state, since a sent request is applied even if the sender leaves.
#[derive(Debug, Clone)]
pub struct Between(pub Arc<Faulty>);

impl Transport for Between {
    // The whole body is sent at once; a late fault is the upstream's own delay.
    fn stops_when_dropped(&self) -> bool {
        true
    }

    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let own = Arc::clone(&self.0);
        let reset = Failure::new(FailureKind::Reset, true);
        Box::pin(async move {
            let fault = own.fault(&request.method);
            match fault {
                Some(Fault::Refused(status)) => return Ok(failed(status)),
                Some(Fault::Late(within)) => {
                    let share = (own.entropy.next() >> 11) as f64 / (1_u64 << 53) as f64;
                    tokio::spawn(async move {
                        tokio::time::sleep(within.mul_f64(share)).await;
                        done(&own, request).await
                    });
                    return Err(reset);
                }
                _ => {}
            }
            // The request is finished even if the sender leaves.
            let inbound = tokio::spawn(async move { done(&own, request).await }).await.unwrap()?;
            match fault {
                Some(Fault::Failed(status)) => Ok(failed(status)),
                Some(Fault::Reset) => Err(reset),
                _ => Ok(inbound),
            }
        })
    }
}

/// The whole exchange, so that the fault can follow it.
async fn done(faulty: &Faulty, request: Outbound) -> Result<Inbound, Failure> {
    let Inbound { status, headers, body } = faulty.inner.send(request).await?;
    let whole = body.collect().await.map_err(|_| Failure::new(FailureKind::Body, true))?;
    Ok(Inbound { status, headers, body: full(whole.to_bytes()) })
}

fn failed(status: u16) -> Inbound {
    let body = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"transient"}]}"#;
    Inbound { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new(), body: full(body.into()) }
}

/// The whole body of a request.
pub async fn whole(body: OutboundBody) -> Bytes {
    match body {
        OutboundBody::Bytes(bytes) => bytes,
        OutboundBody::Stream(mut stream) => {
            let mut read = BytesMut::new();
            while let Some(Ok(frame)) = stream.frame().await {
                read.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
            read.freeze()
        }
    }
}
