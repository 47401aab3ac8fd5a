//! A caller of another host's admin listener: what `triage explain` and `triage policy list` use.

use crate::{
    secret::Secret,
    upstream::{self, HttpClient, Outbound, OutboundBody, Transport as _, TransportError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

/// Bytes of an answer that are read: far more than a host has to say.
const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address.
    #[error("{0:?} is no address of an admin listener; give its URL, such as http://127.0.0.1:9464")]
    Url(String),
    /// The token.
    #[error("the token of TRIAGE_ADMIN_TOKEN cannot be sent; it must be one word of printable ASCII characters")]
    Token,
    /// The client.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Nobody answers there.
    #[error(
        "no answer from {url} ({kind}); start the host with an admin listener there, or give its address with --admin URL"
    )]
    NoAnswer {
        /// Where.
        url: String,
        /// The kind of failure.
        kind: &'static str,
    },
    /// The answer is none of a host's.
    #[error("{url} answered {status}, but not as a host does; give the address of an admin listener with --admin URL")]
    Strange {
        /// Where.
        url: String,
        /// The status.
        status: u16,
    },
    /// The host refuses.
    #[error("{detail}")]
    Refused {
        /// The status.
        status: u16,
        /// What the host says.
        detail: String,
    },
}

/// A caller of one listener.
#[derive(Debug)]
pub struct Client {
    url: String,
    http: HttpClient,
    bearer: Option<HeaderValue>,
}

impl Client {
    /// Of the listener at `url`, with a token where it wants one.
    ///
    /// # Errors
    /// [`ClientError`] where URL or token make no sense.
    pub fn new(url: &str, token: Option<&Secret>) -> Result<Self, ClientError> {
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
        let http = HttpClient::new(&upstream::Settings::new(base))?;
        Ok(Self { url: url.to_owned(), http, bearer: token.map(bearer).transpose()? })
    }

    /// What a path says.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn look(&self, path: &str) -> Result<Value, ClientError> {
        Ok(self.list(path).await?.0)
    }

    /// What a path says, and how many entries there are in all where the list may hold the first ones only.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn list(&self, path: &str) -> Result<(Value, Option<u64>), ClientError> {
        let (status, headers, read) = self.ask(Method::GET, path, Bytes::new()).await?;
        let total = headers.get("x-total-count").and_then(|total| total.to_str().ok()?.parse().ok());
        Ok((self.json((status, read))?, total))
    }

    /// Does something.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn act(&self, path: &str) -> Result<Value, ClientError> {
        let (status, _, read) = self.ask(Method::POST, path, Bytes::new()).await?;
        self.json((status, read))
    }

    /// Does something that wants to know more.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn act_with(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let (status, _, read) = self.ask(Method::POST, path, Bytes::from(body.to_string())).await?;
        self.json((status, read))
    }

    /// Takes what is no JSON as a whole: lines.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn take(&self, path: &str) -> Result<Bytes, ClientError> {
        Ok(self.ask(Method::POST, path, Bytes::new()).await?.2)
    }

    fn json(&self, (status, read): (u16, Bytes)) -> Result<Value, ClientError> {
        serde_json::from_slice(&read).map_err(|_| ClientError::Strange { url: self.url.clone(), status })
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(u16, HeaderMap, Bytes), ClientError> {
        let mut headers = HeaderMap::new();
        if let Some(bearer) = &self.bearer {
            headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        let (path_and_query, body) = (path.to_owned(), OutboundBody::Bytes(body));
        let request = Outbound { method, path_and_query, headers, body, guarded: true };
        let no_answer = |kind| ClientError::NoAnswer { url: self.url.clone(), kind };
        let answer = self.http.send(request).await.map_err(|failure| no_answer(failure.kind.name()))?;
        let read =
            Limited::new(answer.body, MAX_RESPONSE_BYTES).collect().await.map_err(|_| no_answer("body"))?.to_bytes();
        let status = answer.status.as_u16();
        if answer.status.is_success() {
            return Ok((status, answer.headers, read));
        }
        let refusal = self.json((status, read))?;
        let detail = refusal["detail"].as_str().map(str::to_owned);
        let strange = || ClientError::Strange { url: self.url.clone(), status };
        Err(ClientError::Refused { status, detail: detail.ok_or_else(strange)? })
    }
}
