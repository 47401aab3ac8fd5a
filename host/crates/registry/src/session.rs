//! The HTTP requests of one pull or push by the OCI distribution specification, with tokens if the registry demands them.
//!
//! Every response has a size limit. A password is sent only over TLS (except to a registry on this machine), and only to the registry's own
//! hosts: see `may_know`.

use super::{Credentials, RegistryError, Target};
use crate::{
    error_chain::error_chain,
    upstream::{self, TransportError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Response, Url, redirect};
use serde::Deserialize;
use std::{io, time::Duration};

/// Maximum time to connect to a registry, and to wait for data.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("triage/", env!("CARGO_PKG_VERSION"));
/// Registries redirect to the location of a blob, and that host may redirect again.
const MAX_REDIRECTS: usize = 5;
/// Maximum bytes of a token response.
const MAX_TOKEN_BYTES: usize = 64 << 10;

/// A session for one repository.
pub(super) struct Session<'a> {
    http: Client,
    target: &'a Target,
    base: Url,
    credentials: &'a Credentials,
    login: Option<(&'a str, &'a str)>,
    /// The requested permissions: `pull`, or `pull,push`.
    rights: &'static str,
    authorization: Option<HeaderValue>,
}

/// A request.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The operation, for the error message.
    pub(super) what: &'static str,
    /// The statuses that count as success.
    pub(super) expected: &'a [u16],
}

impl<'a> Session<'a> {
    pub(super) fn open(
        target: &'a Target,
        credentials: &'a Credentials,
        rights: &'static str,
    ) -> Result<Self, RegistryError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| RegistryError::Client(io::Error::other(error));
        let scheme = if target.is_local() { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", target.host(), target.repository());
        let base: Url = base.parse().map_err(|_| failed("its name does not form a URL".into()))?;
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .https_only(!target.is_local())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(USER_AGENT);
        if target.is_local() {
            builder = builder.no_proxy();
        }
        let uri = base.as_str().parse::<http::Uri>().map_err(|error| failed(error.into()))?;
        let tls = upstream::tls(&upstream::Settings::new(uri)).map_err(|error: TransportError| failed(error.into()))?;
        builder = builder.tls_backend_preconfigured(tls);
        let http = builder.build().map_err(|error| failed(error.into()))?;
        let login = credentials.of(target.registry());
        Ok(Self { http, target, base, credentials, login, rights, authorization: None })
    }

    /// The URL of a path in the repository.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        self.base.join(path).map_err(|error| self.refused("be named", &error.to_string()))
    }

    /// An error with a message that is partly the registry's, shortened to one line.
    pub(super) fn refused(&self, what: &'static str, why: &str) -> RegistryError {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        let why = why.chars().filter(|c| !c.is_control()).take(300).collect();
        RegistryError::Refused { registry: self.target.registry().to_owned(), what, why }
    }

    /// Sends a request, authenticates if required, and follows redirects.
    pub(super) async fn ask(&mut self, asked: Asked<'_>) -> Result<Response, RegistryError> {
        let mut url = asked.url.clone();
        let (mut redirects, mut signed_in) = (0, false);
        loop {
            let mut request = self.http.request(asked.method.clone(), url.clone()).headers(asked.headers.clone());
            if let Some(authorization) = self.authorization.as_ref().filter(|_| self.is_own(&url)) {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            if !asked.body.is_empty() || asked.method != Method::GET && asked.method != Method::HEAD {
                request = request.body(asked.body.clone());
            }
            let answer =
                request.send().await.map_err(|error| self.refused(asked.what, &error_chain(&error.without_url())))?;
            let status = answer.status();
            if asked.expected.contains(&status.as_u16()) {
                return Ok(answer);
            }
            if status == StatusCode::UNAUTHORIZED && !signed_in && self.is_own(&url) {
                signed_in = true;
                self.sign_in(&answer, asked.what).await?;
            } else if status.is_redirection() && redirects < MAX_REDIRECTS && asked.method == Method::GET {
                redirects += 1;
                let led = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
                let led = led.and_then(|to| url.join(to).ok());
                url = led.ok_or_else(|| self.refused(asked.what, "its redirect has no valid location"))?;
            } else {
                return Err(self.refused(asked.what, &format!("it answered {status}")));
            }
        }
    }

    /// Whether the URL has the registry's own origin.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Authenticates after a 401: with name and password, or with a token from the given realm.
    async fn sign_in(&mut self, answer: &Response, what: &'static str) -> Result<(), RegistryError> {
        let challenge = answer.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let challenge = challenge.unwrap_or_default();
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let refused = || self.refused(what, "it requires a name and a password, or different ones");
        if scheme.eq_ignore_ascii_case("basic") {
            let (user, password) = self.login.ok_or_else(refused)?;
            let value = format!("Basic {}", super::credentials::encoded(user, password));
            self.authorization = Some(sensitive(&value).ok_or_else(refused)?);
            return Ok(());
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refused());
        }
        let realm = parameter(parameters, "realm").and_then(|realm| realm.parse::<Url>().ok());
        let mut realm = realm.ok_or_else(|| self.refused(what, "its challenge names no realm"))?;
        let scope = format!("repository:{}:{}", self.target.repository(), self.rights);
        if let Some(service) = parameter(parameters, "service") {
            realm.query_pairs_mut().append_pair("service", &service);
        }
        realm.query_pairs_mut().append_pair("scope", &scope);
        // The registry chooses the realm. One that may not know the password gets an anonymous request.
        let is_safe = self.is_own(&realm) || may_know(self.target.registry(), &self.base, &realm, self.credentials);
        let mut request = self.http.get(realm);
        if let Some((user, password)) = self.login.filter(|_| is_safe) {
            request = request.basic_auth(user, Some(password));
        }
        let answer = request.send().await.map_err(|error| self.refused(what, &error_chain(&error.without_url())))?;
        if !answer.status().is_success() {
            return Err(self.refused(what, &format!("its token server answered {}", answer.status())));
        }
        let text = self.read(answer, "token", MAX_TOKEN_BYTES, what).await?;
        let Token { token, access_token } =
            serde_json::from_slice(&text).map_err(|_| self.refused(what, "its token server returned no token"))?;
        let token = token.or(access_token).and_then(|token| sensitive(&format!("Bearer {token}")));
        self.authorization = Some(token.ok_or_else(|| self.refused(what, "its token server returned no token"))?);
        Ok(())
    }

    /// Reads a whole body up to a limit.
    pub(super) async fn read(
        &self,
        mut answer: Response,
        kind: &'static str,
        most: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut read = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| self.refused(what, &error_chain(&error.without_url())))?
        {
            if read.len() + chunk.len() > most {
                return Err(RegistryError::TooLarge { registry: self.target.registry().to_owned(), what: kind, most });
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Token hosts that differ from their registry's host.
const REALMS: [(&str, &str); 2] = [("docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];

/// Whether a realm may get the registry's password. It must use TLS, and be the registry's own host, be known to belong to it, or have an
/// entry in the credentials.
fn may_know(registry: &str, base: &Url, realm: &Url, credentials: &Credentials) -> bool {
    let Some(host) = realm.host_str().filter(|_| realm.scheme() == "https") else { return false };
    let named = realm.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let own = realm.host_str() == base.host_str() || realm.port().is_none() && REALMS.contains(&(registry, host));
    own || credentials.names(&named)
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A parameter of a challenge (RFC 9110 section 11.2): comma-separated `name="value"`.
fn parameter(parameters: &str, name: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (own, after) = rest.trim_start_matches([' ', ',']).split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if own.trim().eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Credentials, Url, may_know, parameter};

    #[test]
    fn a_password_goes_to_no_realm_that_only_the_registry_names() {
        let json = r#"{"auths": {"tokens.example": {}, "named.example": {"auth": "YTpi"}, "ports.example:8": {"auth": "YTpi"}}}"#;
        let credentials = Credentials::read(json, "x").unwrap();
        for (registry, host, realm, expected) in [
            ("a.example", "a.example", "https://a.example/token", true),
            ("a.example:5000", "a.example:5000", "https://a.example/token", true),
            ("a.example", "a.example", "http://a.example/token", false),
            ("a.example", "a.example", "https://b.a.example/token", false),
            ("a.example", "a.example", "https://tokens.example/", false),
            ("a.example", "a.example", "https://named.example/", true),
            ("a.example", "a.example", "http://named.example/", false),
            ("a.example", "a.example", "https://named.example:9/", false),
            ("a.example", "a.example", "https://ports.example:8/", true),
            ("docker.io", "registry-1.docker.io", "https://auth.docker.io/token", true),
            ("docker.io", "registry-1.docker.io", "https://auth.docker.io:9/token", false),
            ("a.example", "a.example", "https://auth.docker.io/token", false),
            ("registry.gitlab.com", "registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
        ] {
            let base = format!("https://{host}/v2/a/").parse::<Url>().unwrap();
            let may_know_password = may_know(registry, &base, &realm.parse().unwrap(), &credentials);
            assert_eq!(may_know_password, expected, "{registry}: {realm}");
        }
    }

    #[test]
    fn a_challenges_parameters_are_found() {
        let text = r#"realm="https://auth.example/token?a=b,c",service=registry , scope="repository:a:pull""#;
        assert_eq!(parameter(text, "realm").as_deref(), Some("https://auth.example/token?a=b,c"));
        assert_eq!(parameter(text, "Service").as_deref().map(str::trim), Some("registry"));
        assert_eq!(parameter(text, "scope").as_deref(), Some("repository:a:pull"));
        for text in ["", "realm", "=", "realm=\"", ",,,", "a=b"] {
            assert_eq!(parameter(text, "realm"), None, "{text}");
        }
    }
}
