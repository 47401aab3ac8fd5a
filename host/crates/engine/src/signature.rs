//! Checks a component's signature (minisign's ed25519) and its checksum, which are files beside the component.
//!
//! If the operator configures public keys, the host loads only files with a valid signature of one of these keys. A checksum only detects
//! broken copies; the host checks it wherever it exists.

use super::Digest;
use crate::bounded_file;
use minisign_verify::{Error, PublicKey, Signature};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// The maximum size of a key, signature or checksum file. Such a file has a few hundred bytes.
const MAX_FILE_BYTES: u64 = 8 << 10;

/// A public key in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The key itself, as minisign writes it: `RW...`.
    Text(String),
    /// A file as `minisign -G` makes it, `NAME.pub`.
    File(PathBuf),
}

impl KeySource {
    /// Resolves a relative path against a folder.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            text @ Self::Text(_) => text,
        }
    }
}

impl FromStr for KeySource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let path = Path::new(text);
        if path.extension().is_some_and(|extension| extension == "pub") {
            return Ok(Self::File(path.to_owned()));
        }
        PublicKey::from_base64(text).map(|_| Self::Text(text.to_owned()))
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(key) => f.write_str(key),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key's file cannot be read.
    #[error("the key file {} cannot be read; it must be a file that `minisign -G` made", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The text is not a key.
    #[error("{name} holds no minisign public key; it must be a key that `minisign -G` made")]
    Malformed {
        /// The file, or the text.
        name: String,
        /// The cause.
        #[source]
        source: Error,
    },
}

/// Why a component fails the check of its signature or its checksum.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The signature file does not exist.
    #[error(
        "the component is not signed: there is no {}; with `policies.keys` one of those keys must sign every \
         component: sign it with `minisign -Sm {}`, and copy the signature there before the component",
        shown(signature),
        shown(component)
    )]
    Unsigned {
        /// The component.
        component: PathBuf,
        /// The expected path of the signature.
        signature: PathBuf,
    },
    /// A registry's artifact carries no signature.
    #[error(
        "the artifact is not signed; with `policies.keys` one of those keys must sign every component: sign the file \
         with `minisign -Sm FILE` and push it again"
    )]
    Bare,
    /// The signature is malformed.
    #[error(
        "{} is not a minisign signature; it must be a file that `minisign -S` wrote: copy it again",
        shown(signature)
    )]
    Malformed {
        /// The signature's file.
        signature: PathBuf,
        /// The cause.
        #[source]
        source: Error,
    },
    /// None of the configured keys made the signature.
    #[error(
        "none of `policies.keys` has signed the component; sign it with one of them, or add its key to `policies.keys`"
    )]
    Stranger,
    /// A configured key made the signature, but for other bytes.
    #[error("the signature does not match the component; copy both again, or sign the component again")]
    Forged,
    /// The checksum belongs to other bytes.
    #[error(
        "the component's SHA-256 is {found}, but {} contains {said}; they must be equal: copy both again",
        shown(checksum)
    )]
    Checksum {
        /// The checksum's file.
        checksum: PathBuf,
        /// The SHA-256 in that file.
        said: String,
        /// The component's SHA-256.
        found: Digest,
    },
    /// A file beside the component cannot be read.
    #[error("{} cannot be read; it must be a file of at most {MAX_FILE_BYTES} bytes", shown(file))]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl SignatureError {
    /// Whether the checksum failed, not the signature.
    pub fn is_checksum(&self) -> bool {
        match self {
            Self::Checksum { .. } => true,
            Self::Read { file, .. } => file.extension().is_some_and(|extension| extension == "sha256"),
            _ => false,
        }
    }
}

fn shown(path: &Path) -> impl fmt::Display {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The operator's public keys: one of them must have signed each component. Without keys, components need no signature.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<[PublicKey]>);

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`KeyError`] names the first key that is unusable.
    pub fn open(sources: &[KeySource]) -> Result<Self, KeyError> {
        let key = |source: &KeySource| {
            let malformed = |error| KeyError::Malformed { name: source.to_string(), source: error };
            match source {
                KeySource::Text(text) => PublicKey::from_base64(text).map_err(malformed),
                KeySource::File(path) => {
                    let text = read(path).map_err(|error| KeyError::File { path: path.clone(), source: error })?;
                    PublicKey::decode(text.trim_end())
                        .or_else(|_| PublicKey::from_base64(text.trim()))
                        .map_err(malformed)
                }
            }
        };
        Ok(Self(sources.iter().map(key).collect::<Result<_, _>>()?))
    }

    /// Whether components need no signature.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks a component's bytes against the files beside it: `NAME.wasm.sha256` if it exists, and `NAME.wasm.minisig` if there are keys.
    ///
    /// # Errors
    /// [`SignatureError`] names the mismatch and the remedy.
    pub fn check(&self, component: &Path, bytes: &[u8]) -> Result<(), SignatureError> {
        check_sum(component, bytes)?;
        if self.is_empty() { Ok(()) } else { self.check_signature(component, bytes) }
    }

    /// Checks a component's bytes against a signature that was delivered with them, as by a registry.
    ///
    /// # Errors
    /// [`SignatureError`], if there are keys.
    pub fn verify(&self, signature: Option<&str>, bytes: &[u8]) -> Result<(), SignatureError> {
        match signature {
            _ if self.is_empty() => Ok(()),
            None => Err(SignatureError::Bare),
            Some(text) => self.verify_text(text, Path::new("its annotation"), bytes),
        }
    }

    fn check_signature(&self, component: &Path, bytes: &[u8]) -> Result<(), SignatureError> {
        let file = beside(component, "minisig");
        let Some(text) = read_if_there(&file)? else {
            return Err(SignatureError::Unsigned { component: component.to_owned(), signature: file });
        };
        self.verify_text(&text, &file, bytes)
    }

    fn verify_text(&self, text: &str, file: &Path, bytes: &[u8]) -> Result<(), SignatureError> {
        let malformed = |source| SignatureError::Malformed { signature: file.to_owned(), source };
        let signature = Signature::decode(text).map_err(malformed)?;
        let mut strangers = 0;
        for key in self.0.iter() {
            // Accept signatures of minisign before 0.9 too: they sign the bytes instead of a hash of them.
            match key.verify(bytes, &signature, true) {
                Ok(()) => return Ok(()),
                Err(Error::UnexpectedKeyId) => strangers += 1,
                Err(_) => {}
            }
        }
        Err(if strangers == self.0.len() { SignatureError::Stranger } else { SignatureError::Forged })
    }
}

/// The state of a component's signature and checksum, in words for a terminal. Without keys, the signature's file is only known to exist.
pub fn state(keys: &Keys, component: &Path, bytes: &[u8]) -> String {
    let [signature, checksum] = companions(component);
    let of_sum = match check_sum(component, bytes) {
        Ok(()) if checksum.exists() => "checksum matches".to_owned(),
        Ok(()) => "no checksum".to_owned(),
        Err(error) => error.to_string(),
    };
    let of_signature = match (keys.is_empty(), signature.exists()) {
        (_, false) => "not signed".to_owned(),
        (true, true) => "signed, but not checked against a key: give --key".to_owned(),
        (false, true) => match keys.check_signature(component, bytes) {
            Ok(()) => "signed by the given key".to_owned(),
            Err(error) => error.to_string(),
        },
    };
    format!("{of_signature}; {of_sum}")
}

/// The paths of a component's signature and checksum.
pub fn companions(component: &Path) -> [PathBuf; 2] {
    [beside(component, "minisig"), beside(component, "sha256")]
}

/// Checks the component against its checksum file, which contains the output of `sha256sum NAME.wasm` or the digits alone.
fn check_sum(component: &Path, bytes: &[u8]) -> Result<(), SignatureError> {
    let file = beside(component, "sha256");
    let Some(text) = read_if_there(&file)? else { return Ok(()) };
    let said = text.split_whitespace().next().unwrap_or_default();
    let found = Digest::of(bytes);
    if said.eq_ignore_ascii_case(&found.to_string()) {
        return Ok(());
    }
    let said = super::convert::short(said, 64);
    Err(SignatureError::Checksum {
        checksum: file,
        said: if said.is_empty() { "nothing".to_owned() } else { said },
        found,
    })
}

fn beside(component: &Path, extension: &str) -> PathBuf {
    let mut name = component.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn read_if_there(file: &Path) -> Result<Option<String>, SignatureError> {
    match read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SignatureError::Read { file: file.to_owned(), source }),
    }
}

fn read(file: &Path) -> io::Result<String> {
    bounded_file::read_text(file, MAX_FILE_BYTES)
}
