//! Access to a running host's admin listener, shared by several commands.

use super::{runtime, variable};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use triage_admin::{Client, ClientError, ClientTls, Shape};
use triage_bounded_file as bounded_file;
use triage_core::secret::Secret;
use triage_upstream::Identity;

/// The address and credentials of the admin listener.
#[derive(Debug, clap::Args)]
pub struct Remote {
    #[arg(
        long,
        value_name = "URL",
        help = "The host's admin listener [default: TRIAGE_ADMIN_URL, else http://127.0.0.1:9464]"
    )]
    admin: Option<String>,
    #[arg(
        long,
        value_name = "FILE",
        help = "A file with the token, if the listener requires one [default: the token in TRIAGE_ADMIN_TOKEN]"
    )]
    token_file: Option<PathBuf>,
    #[arg(
        long,
        value_name = "FILE",
        help = "PEM file of authorities to trust for an https URL [default: TRIAGE_ADMIN_CA_FILE, else the system's]"
    )]
    ca_file: Option<PathBuf>,
    #[arg(
        long,
        value_name = "FILE",
        help = "PEM file of the client certificate to show [default: TRIAGE_ADMIN_CLIENT_CERTIFICATE]"
    )]
    client_certificate: Option<PathBuf>,
    #[arg(
        long,
        value_name = "FILE",
        help = "PEM file of the client certificate's private key [default: TRIAGE_ADMIN_CLIENT_KEY]"
    )]
    client_key: Option<PathBuf>,
}

impl Remote {
    /// Creates the client.
    pub fn client(&self) -> Result<Client> {
        let token = match &self.token_file {
            Some(file) => {
                let text =
                    bounded_file::read_secret(file).with_context(|| format!("{} cannot be read", file.display()))?;
                Some(text.trim().to_owned())
            }
            None => variable("TRIAGE_ADMIN_TOKEN"),
        };
        let url = self.admin.clone().or_else(|| variable("TRIAGE_ADMIN_URL"));
        let url = url.unwrap_or_else(|| "http://127.0.0.1:9464".to_owned());
        if url.starts_with("http://") && (self.ca_file.is_some() || self.client_certificate.is_some()) {
            bail!(
                "{url} is not encrypted, and --ca-file and --client-certificate are for https; write https:// in the URL"
            );
        }
        Ok(Client::new(&url, token.map(|token| Secret::new(token.trim())).as_ref(), &self.tls()?)?)
    }

    fn tls(&self) -> Result<ClientTls> {
        let file = |flag: &Option<PathBuf>, name| flag.clone().or_else(|| variable(name).map(PathBuf::from));
        let certificate = file(&self.client_certificate, "TRIAGE_ADMIN_CLIENT_CERTIFICATE");
        let key = file(&self.client_key, "TRIAGE_ADMIN_CLIENT_KEY");
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                bounded_file::check_secret(&key);
                Some(Identity { certificate, key })
            }
            (Some(_), None) => bail!("a client certificate needs its private key; give it with --client-key FILE"),
            (None, Some(_)) => bail!("a client key needs its certificate; give it with --client-certificate FILE"),
        };
        Ok(ClientTls { ca_file: file(&self.ca_file, "TRIAGE_ADMIN_CA_FILE"), identity })
    }

    /// Gets the JSON at a path.
    pub fn get(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.get(path, shape)).map_err(with_hint)?)
    }

    /// Gets a list and the total number of entries.
    pub fn list(&self, path: &str, shape: Shape) -> Result<(serde_json::Value, Option<u64>)> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.list(path, shape)).map_err(with_hint)?)
    }

    /// Posts to a path without a body.
    pub fn act(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act(path, shape)).map_err(with_hint)?)
    }

    /// Posts a JSON body to a path.
    pub fn act_with(&self, path: &str, body: &serde_json::Value, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.act_with(path, body, shape)).map_err(with_hint)?)
    }

    /// Deletes what is at a path.
    pub fn delete(&self, path: &str, shape: Shape) -> Result<serde_json::Value> {
        let client = self.client()?;
        Ok(runtime()?.block_on(client.delete(path, shape)).map_err(with_hint)?)
    }
}

/// The listener's message names HTTP headers; replaces it with one that names the command's options.
pub fn with_hint(error: ClientError) -> ClientError {
    match error {
        ClientError::Refused { status: 401, .. } => ClientError::Refused {
            status: 401,
            detail: "the host requires a token; give it by TRIAGE_ADMIN_TOKEN or --token-file FILE".to_owned(),
        },
        other => other,
    }
}

/// Encodes a name for a path. An invalid name must not turn into another path.
pub fn segment(name: &str) -> String {
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'), "~")
}
