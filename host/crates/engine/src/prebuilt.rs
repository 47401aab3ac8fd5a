//! The policies that are built into the host, from `guest-policies/prebuilt/`.

const EMBEDDED: [(&str, &[u8]); 3] = [
    ("http-standard", include_bytes!("../../../../guest-policies/prebuilt/http-standard.wasm")),
    ("hospital-directory", include_bytes!("../../../../guest-policies/prebuilt/hospital-directory.wasm")),
    ("fhir", include_bytes!("../../../../guest-policies/prebuilt/fhir.wasm")),
];

/// The component of an embedded policy.
pub fn embedded(name: &str) -> Option<&'static [u8]> {
    EMBEDDED.iter().find(|(own, _)| *own == name).map(|(_, component)| *component)
}

/// The names of all embedded policies; the first is the default.
pub fn names() -> Vec<&'static str> {
    EMBEDDED.iter().map(|(name, _)| *name).collect()
}
