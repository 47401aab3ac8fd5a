//! From layered values to settings.

use super::{
    Problems,
    layers::Layers,
    section::{Reading, Section},
    settings::{Server, Settings, State, Upstream},
    upstream,
    value::{COUNT, DURATION, SIZE},
};
use std::{net::SocketAddr, thread, time::Duration};

pub(super) fn settings(layers: &Layers) -> Result<Settings, Problems> {
    let reading = Reading::new(layers);
    let root = Section::root(&reading);
    let server = server(&root.section("server"));
    let state = state(&root.section("state"));
    let sections = root.section("upstreams").sections();
    if sections.is_empty() {
        let must = "have an upstream: give --upstream URL, HOSPITAL_API_BASE_URL or a table [upstreams.NAME]";
        reading.wrong("upstreams", "", must);
    }
    let upstreams: Vec<Upstream> = sections.iter().map(|(name, section)| upstream::read(name, section)).collect();
    overlapping(&reading, &upstreams);
    root.finish();
    reading.done(Some(Settings { server, state, upstreams }))
}

fn server(section: &Section<'_>) -> Server {
    let address = "be an address with port, such as \"127.0.0.1:8080\"";
    let cores = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let read = Server {
        listen: section
            .parsed("listen", address, |text| text.parse().ok())
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
        workers: section.get("workers", COUNT).map_or(cores, |workers| workers.min(1024) as usize),
        max_connections: section.get("max_connections", COUNT).map_or(10_000, |most| most as usize),
        max_header_bytes: section.get("max_header_bytes", SIZE).unwrap_or(64 << 10),
        header_read_timeout: section.get("header_read_timeout", DURATION).unwrap_or(Duration::from_secs(10)),
        drain: section.get("drain", DURATION).unwrap_or(Duration::from_secs(30)),
    };
    section.finish();
    read
}

fn state(section: &Section<'_>) -> State {
    let must = "be \"memory:\": state in this process is what this version keeps";
    let state = section.parsed("url", must, |text| (text == "memory:").then_some(State::Memory));
    section.finish();
    state.unwrap_or(State::Memory)
}

/// Two upstreams that would take the same requests.
fn overlapping(reading: &Reading<'_>, upstreams: &[Upstream]) {
    for (index, one) in upstreams.iter().enumerate() {
        let twin = upstreams[..index].iter().find(|other| {
            (&other.listen, &other.host, &other.path_prefix) == (&one.listen, &one.host, &one.path_prefix)
        });
        if let Some(other) = twin {
            let must = format!("differ from upstreams.{} in path_prefix, host or listen", other.name);
            reading.wrong(&format!("upstreams.{}", one.name), "the same requests", must);
        }
    }
}
