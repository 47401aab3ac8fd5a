//! A client for another host's admin listener, used by commands such as `triage explain` and `triage policy list`.

use crate::{
    contract::{Failure, FailureKind},
    response,
    secret::Secret,
    upstream::{self, HttpClient, Identity, Outbound, OutboundBody, Transport as _, TransportError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

mod handshake;
mod shape;

pub use shape::Shape;

/// The longest time until a response is whole. A script that asks a host must not hang with a server that accepts and is silent.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum bytes of a response, far above what a host sends.
const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// Why a request to an admin listener failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL of the listener is invalid.
    #[error("{0:?} is not an admin listener's address; give its URL, such as http://127.0.0.1:9464")]
    Url(String),
    /// The token contains characters that a header cannot carry.
    #[error("the token of TRIAGE_ADMIN_TOKEN is not valid; it must be one word of printable ASCII characters")]
    Token,
    /// The HTTP client could not be created.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No server responded at the URL.
    #[error(
        "no answer from {url} ({kind}); start the host with an admin listener there, or give its address with --admin URL"
    )]
    NoAnswer {
        /// The URL of the listener.
        url: String,
        /// The kind of failure, such as `connect`.
        kind: &'static str,
    },
    /// TLS with the listener failed.
    #[error("no answer from {url}: {text}")]
    Tls {
        /// The URL of the listener.
        url: String,
        /// The cause, and what to do.
        text: String,
    },
    /// The listener did not answer in plain HTTP, as one with TLS does.
    #[error(
        "{url} does not speak plain HTTP ({kind}); if the listener has TLS, write https:// in the URL, else give the \
         address of an admin listener with --admin URL"
    )]
    NotHttp {
        /// The URL of the listener.
        url: String,
        /// The kind of failure, such as `protocol`.
        kind: &'static str,
    },
    /// The response is not that of a Triage host.
    #[error(
        "{url} answered {status}, but the answer is not from a Triage host; give the address of an admin listener \
             with --admin URL"
    )]
    Strange {
        /// The URL of the listener.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The host refused the request.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The host's message.
        detail: String,
    },
}

/// How a client verifies a listener with TLS, and itself to it.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    /// A PEM file of authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show.
    pub identity: Option<Identity>,
}

/// A client for one listener.
#[derive(Debug)]
pub struct Client {
    url: String,
    is_encrypted: bool,
    has_identity: bool,
    http: HttpClient,
    bearer: Option<HeaderValue>,
}

impl Client {
    /// A client for the listener at `url`, with a token if it needs one. `tls` counts for an `https` URL.
    ///
    /// # Errors
    /// [`ClientError`] if the URL or the token is invalid, or a file of `tls` cannot be used.
    pub fn new(url: &str, token: Option<&Secret>, tls: &ClientTls) -> Result<Self, ClientError> {
        let refused = || ClientError::Url(url.to_owned());
        let base: Uri = url.trim_end_matches('/').parse().map_err(|_| refused())?;
        if base.host().is_none() || !matches!(base.scheme_str(), Some("http" | "https")) {
            return Err(refused());
        }
        let bearer = |token: &Secret| {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.reveal())).map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            Ok::<_, ClientError>(value)
        };
        let is_encrypted = base.scheme_str() == Some("https");
        let mut settings = upstream::Settings::new(base);
        if is_encrypted {
            settings.ca_file.clone_from(&tls.ca_file);
            settings.identity.clone_from(&tls.identity);
        }
        Ok(Self {
            url: url.to_owned(),
            is_encrypted,
            has_identity: settings.identity.is_some(),
            http: HttpClient::new(&settings)?,
            bearer: token.map(bearer).transpose()?,
        })
    }

    /// Gets the JSON at a path.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn get(&self, path: &str, shape: Shape) -> Result<Value, ClientError> {
        Ok(self.list(path, shape).await?.0)
    }

    /// Gets a list, and the total number of entries, since the list may hold only the first ones.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn list(&self, path: &str, shape: Shape) -> Result<(Value, Option<u64>), ClientError> {
        let (status, headers, read) = self.ask(Method::GET, path, Bytes::new()).await?;
        let total = headers.get("x-total-count").and_then(|total| total.to_str().ok()?.parse().ok());
        Ok((self.json((status, read), shape)?, total))
    }

    /// Posts to a path without a body.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn act(&self, path: &str, shape: Shape) -> Result<Value, ClientError> {
        let (status, _, read) = self.ask(Method::POST, path, Bytes::new()).await?;
        self.json((status, read), shape)
    }

    /// Posts a JSON body to a path.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn act_with(&self, path: &str, body: &Value, shape: Shape) -> Result<Value, ClientError> {
        let (status, _, read) = self.ask(Method::POST, path, Bytes::from(body.to_string())).await?;
        self.json((status, read), shape)
    }

    /// Deletes what is at a path, such as a pause.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn delete(&self, path: &str, shape: Shape) -> Result<Value, ClientError> {
        let (status, _, read) = self.ask(Method::DELETE, path, Bytes::new()).await?;
        self.json((status, read), shape)
    }

    /// Posts to a path and returns the raw response, such as lines of a recording.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn take(&self, path: &str) -> Result<Bytes, ClientError> {
        Ok(self.ask(Method::POST, path, Bytes::new()).await?.2)
    }

    fn json(&self, (status, read): (u16, Bytes), shape: Shape) -> Result<Value, ClientError> {
        let value = serde_json::from_slice(&read).ok().filter(|value| shape.fits(value));
        value.ok_or_else(|| ClientError::Strange { url: self.url.clone(), status })
    }

    fn failed(&self, failure: Failure) -> ClientError {
        let (url, kind) = (self.url.clone(), failure.kind.name());
        let tls = failure.reason.filter(|_| self.is_encrypted);
        if let Some(text) = tls.and_then(|reason| handshake::text(reason, failure.certificate, self.has_identity)) {
            return ClientError::Tls { url, text };
        }
        match failure.kind {
            FailureKind::Protocol if !self.is_encrypted => ClientError::NotHttp { url, kind },
            _ => ClientError::NoAnswer { url, kind },
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(u16, HeaderMap, Bytes), ClientError> {
        let mut credentials = HeaderMap::new();
        if let Some(bearer) = &self.bearer {
            credentials.insert(header::AUTHORIZATION, bearer.clone());
        }
        let (path_and_query, body) = (path.to_owned(), OutboundBody::Bytes(body));
        let request = Outbound { method, path_and_query, headers: credentials, body, guarded: true };
        let no_answer = |kind| ClientError::NoAnswer { url: self.url.clone(), kind };
        let exchange = async {
            let answer = self.http.send(request).await.map_err(|failure| self.failed(failure))?;
            let body = Limited::new(answer.body, MAX_RESPONSE_BYTES).collect().await.map_err(|_| no_answer("body"))?;
            Ok::<_, ClientError>((answer.status, answer.headers, body.to_bytes()))
        };
        let exchanged = tokio::time::timeout(RESPONSE_TIMEOUT, exchange).await.map_err(|_| no_answer("timeout"))?;
        let (status, headers, read) = exchanged?;
        let is_success = status.is_success();
        let status = status.as_u16();
        if is_success {
            return Ok((status, headers, read));
        }
        let refusal = self.json((status, read), shape::REFUSAL)?;
        // A server that is no admin listener may answer problems of its own.
        let is_of_listener = refusal["type"].as_str().is_some_and(|kind| kind.starts_with(response::PROBLEM_TYPES));
        match refusal["detail"].as_str().filter(|_| is_of_listener) {
            Some(detail) => {
                // A terminal would follow control characters.
                let detail = detail.replace(|c: char| c.is_control(), " ");
                Err(ClientError::Refused { status, detail })
            }
            None => Err(ClientError::Strange { url: self.url.clone(), status }),
        }
    }
}
