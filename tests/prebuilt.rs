//! The prebuilt components match their sources.

use std::path::Path;
use triage_engine::build::sources;

#[test]
fn components_were_built_from_these_sources() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies");
    let noted = std::fs::read_to_string(guests.join("prebuilt").join(sources::FILE)).unwrap();
    let digest = sources::digest(&guests).unwrap().to_string();
    assert_eq!(noted.trim(), digest, "sources changed: run `cargo run -- policy rebuild-prebuilt`");
}
