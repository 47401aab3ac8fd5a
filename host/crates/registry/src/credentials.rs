//! Registry credentials in the format of docker, podman and Kubernetes (`config.json`, `.dockerconfigjson`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt};

/// Why the credentials cannot be read. The message contains no secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("{0} cannot be read; it must be a docker config.json with \"auths\"")]
    Read(String, #[source] std::io::Error),
    /// The file is not in docker's format.
    #[error("{0} must be a docker config.json: {{\"auths\": {{\"HOST\": {{\"auth\": \"BASE64 OF NAME:PASSWORD\"}}}}}}")]
    Shape(String),
}

/// User name and password by registry. They are sent only to their registry, and to the host that issues the registry's tokens: if that is
/// the registry's own host, is known to belong to it, or has an entry here too.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, (String, String)>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Parses a docker `config.json`. `name` is its name in errors.
    ///
    /// # Errors
    /// [`CredentialsError::Shape`]
    pub fn read(json: &str, name: &str) -> Result<Self, CredentialsError> {
        let shape = || CredentialsError::Shape(name.to_owned());
        let Config { auths } = serde_json::from_str(json).map_err(|_| shape())?;
        let mut all = BTreeMap::new();
        for (host, entry) in auths {
            let pair = match entry {
                Entry { username: Some(user), password: Some(password), .. } => (user, password),
                Entry { auth: Some(auth), .. } => {
                    let text = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                    let text = text.ok_or_else(shape)?;
                    let (user, password) = text.split_once(':').ok_or_else(shape)?;
                    (user.to_owned(), password.to_owned())
                }
                // A credential helper has the password. Helpers are not supported.
                Entry { .. } => continue,
            };
            // Docker sometimes writes a host with scheme and path.
            let host = host.trim_start_matches("https://").trim_start_matches("http://");
            let host = match host.split('/').next().unwrap_or_default() {
                // The name that `docker login` writes for Docker Hub.
                "index.docker.io" => "docker.io",
                other => other,
            };
            all.insert(host.to_owned(), pair);
        }
        Ok(Self(all))
    }

    /// Whether the host has an entry.
    pub(super) fn names(&self, host: &str) -> bool {
        self.0.contains_key(host)
    }

    /// User name and password of a registry.
    pub(super) fn of(&self, registry: &str) -> Option<(&str, &str)> {
        self.0.get(registry).map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

/// Encodes credentials for HTTP's Basic scheme (RFC 7617).
pub(super) fn encoded(user: &str, password: &str) -> String {
    STANDARD.encode(format!("{user}:{password}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_registry_gets_its_own_and_no_other() {
        let json = r#"{"auths": {"https://a.example/v1/": {"auth": "YWxpY2U6czNjOnJldA=="},
            "b.example:5000": {"username": "bob", "password": "hush"}, "c.example": {}}, "credsStore": "x"}"#;
        let credentials = Credentials::read(json, "x").unwrap();
        assert_eq!(credentials.of("a.example"), Some(("alice", "s3c:ret")));
        assert_eq!(credentials.of("b.example:5000"), Some(("bob", "hush")));
        assert_eq!(credentials.of("b.example"), None);
        assert_eq!(credentials.of("c.example"), None);
        assert_eq!(format!("{credentials:?}"), r#"{"a.example", "b.example:5000"}"#, "no secret");
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YWxpY2U6czNjOnJldA=="}}}"#;
        assert_eq!(Credentials::read(hub, "x").unwrap().of("docker.io"), Some(("alice", "s3c:ret")), "docker login");
        for json in ["", "5", r#"{"auths": {"a": {"auth": "%"}}}"#, r#"{"auths": {"a": {"auth": "YWxpY2U="}}}"#] {
            let message = Credentials::read(json, "the file").unwrap_err().to_string();
            assert!(message.starts_with("the file must be a docker config.json: {\"auths\":"), "{json}: {message}");
        }
    }
}
