//! Debian's OCI registry on a free port with a name and a password, killed on drop.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// The credentials that the registry accepts.
pub const AUTH: &str = "YWxpY2U6czNjcmV0LXdvcmQ=";
const HTPASSWD: &str = "alice:$2b$04$hD79knB7JH8rvkBt8iRePeXK0O5kozWzGzHeDFBLzCsMIcAlTM5UW\n";

pub struct OciRegistry {
    process: Child,
    pub address: String,
    _folder: tempfile::TempDir,
}

impl Drop for OciRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl OciRegistry {
    /// None if it is not installed.
    pub fn start() -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            println!("skipped: docker-registry is not installed; `apt-get install docker-registry`");
            return None;
        }
        for _ in 0..20 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name).display().to_string();
            fs::write(path("htpasswd"), HTPASSWD).unwrap();
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n\
                 auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
                path("data"),
                path("htpasswd")
            );
            fs::write(path("config.yml"), config).unwrap();
            let mut process = Command::new("docker-registry")
                .args(["serve", &path("config.yml")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // It exits if another test has taken the port.
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect(&address).is_ok() {
                    return Some(Self { process, address, _folder: folder });
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("the registry does not start");
    }

    /// A docker `config.json` for this registry.
    pub fn credentials(&self) -> String {
        format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{AUTH}\"}}}}}}", self.address)
    }
}
