//! Names of components in registries: `oci://HOST/REPOSITORY@sha256:DIGEST` to pull, `oci://HOST/REPOSITORY:TAG` to push.

use crate::digest::Digest;
use std::{fmt, net::IpAddr, str::FromStr};

/// The prefix of every name.
const SCHEME: &str = "oci://";

/// Why a name is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The prefix `oci://` is missing.
    #[error("it must begin with oci://")]
    Scheme,
    /// The host is missing or invalid.
    #[error("after oci:// there must be a host with an optional port, and no user or password")]
    Host,
    /// The repository is missing or invalid.
    #[error("after the host there must be a repository: parts of a-z, 0-9, '.', '_' and '-' between slashes")]
    Repository,
    /// The digest is missing or invalid.
    #[error(
        "it must end with @sha256: and 64 hexadecimal digits, as `triage policy push` prints it: a tag may change its \
         meaning"
    )]
    Digest,
    /// The tag is invalid.
    #[error("a tag has at most 128 characters of a-z, A-Z, 0-9, '.', '_' and '-'")]
    Tag,
}

/// The name of a component: a repository and a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Artifact {
    target: Target,
    digest: Digest,
}

/// A repository in a registry, with an optional tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    registry: String,
    repository: String,
    tag: Option<String>,
}

impl Target {
    /// Host and optional port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host to connect to. Docker Hub's differs from its name.
    pub(super) fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// The repository's path, such as `team/policy`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The component with this digest in this repository.
    pub fn at(&self, digest: Digest) -> Artifact {
        Artifact { target: Self { tag: None, ..self.clone() }, digest }
    }

    /// Whether the registry runs on this machine, so that it may be used without TLS.
    pub fn is_local(&self) -> bool {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { &self.registry }
        });
        let host = host.trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rest = text.strip_prefix(SCHEME).ok_or(InvalidName::Scheme)?;
        let (registry, path) = rest.split_once('/').ok_or(InvalidName::Repository)?;
        let authority: http::uri::Authority = registry.parse().map_err(|_| InvalidName::Host)?;
        if registry.contains('@') || authority.host().is_empty() {
            return Err(InvalidName::Host);
        }
        let (repository, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let part = |part: &str| {
            part.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
                && part.bytes().next().is_some_and(plain)
                && part.bytes().last().is_some_and(plain)
        };
        if repository.len() > 255 || !repository.split('/').all(part) {
            return Err(InvalidName::Repository);
        }
        let fits = |tag: &&str| {
            (1..=128).contains(&tag.len())
                && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !tag.starts_with(['.', '-'])
        };
        if tag.is_some_and(|tag| !fits(&tag)) {
            return Err(InvalidName::Tag);
        }
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), tag: tag.map(str::to_owned) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.registry, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl Artifact {
    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        self.target.registry()
    }

    /// The repository.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl FromStr for Artifact {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (target, digest) = text.split_once("@sha256:").ok_or(if text.starts_with(SCHEME) {
            InvalidName::Digest
        } else {
            InvalidName::Scheme
        })?;
        let digest = digest.parse().map_err(|_| InvalidName::Digest)?;
        let target = Target { tag: None, ..target.parse()? };
        Ok(Self { target, digest })
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@sha256:{}", self.target, self.digest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_what_they_say_or_are_refused() {
        let digest = "ab".repeat(32);
        let good = format!("oci://registry.example:5000/team/policies/parcels@sha256:{digest}");
        let artifact: Artifact = good.parse().unwrap();
        assert_eq!((artifact.to_string(), artifact.registry()), (good, "registry.example:5000"));
        for (name, why) in [
            (format!("https://a.example/b@sha256:{digest}"), InvalidName::Scheme),
            ("oci://a.example/b:1.0".to_owned(), InvalidName::Digest),
            (format!("oci://a.example/b@sha256:{}", &digest[1..]), InvalidName::Digest),
            (format!("oci://a.example/b@sha256:{}g", &digest[1..]), InvalidName::Digest),
            (format!("oci://a.example@sha256:{digest}"), InvalidName::Repository),
            (format!("oci:///b@sha256:{digest}"), InvalidName::Host),
            (format!("oci://user:secret@a.example/b@sha256:{digest}"), InvalidName::Host),
            (format!("oci://a.example/../b@sha256:{digest}"), InvalidName::Repository),
            (format!("oci://a.example/b//c@sha256:{digest}"), InvalidName::Repository),
            (format!("oci://a.example/B@sha256:{digest}"), InvalidName::Repository),
            (format!("oci://a.example/b?c=d@sha256:{digest}"), InvalidName::Repository),
        ] {
            assert_eq!(name.parse::<Artifact>().unwrap_err(), why, "{name}");
        }
        assert_eq!("oci://a.example/b:a/b".parse::<Target>().unwrap_err(), InvalidName::Tag);
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for (host, local) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("localhost.example:5000", false),
            ("10.0.0.1:5000", false),
            ("registry.example", false),
        ] {
            assert_eq!(format!("oci://{host}/a").parse::<Target>().unwrap().is_local(), local, "{host}");
        }
    }
}
