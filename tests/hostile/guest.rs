//! A correct policy in WebAssembly text, and functions to break one part of it.
//!
//! The core module has a whole description and a whole verdict in its memory, in the layout of the component model's canonical ABI, and its
//! functions return their addresses. A test overwrites a field or replaces a function's body.

use std::fmt::Write as _;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Addresses of fields in memory.
pub mod at {
    /// The description: name, version, endpoints, health.
    pub const DESCRIPTION: u32 = 0x100;
    pub const NAME: u32 = DESCRIPTION;
    pub const VERSION: u32 = DESCRIPTION + 8;
    pub const ENDPOINTS: u32 = DESCRIPTION + 16;
    pub const HEALTH: u32 = DESCRIPTION + 24;
    pub const HEALTH_PATH: u32 = DESCRIPTION + 28;

    /// The description's only endpoint.
    pub const ENDPOINT: u32 = 0x200;
    pub const ENDPOINT_NAME: u32 = ENDPOINT;
    pub const METHOD: u32 = ENDPOINT + 8;
    pub const PATH: u32 = ENDPOINT + 16;
    pub const EFFECT: u32 = ENDPOINT + 24;
    pub const REQUEST_HEADERS: u32 = ENDPOINT + 32;
    pub const REQUEST_BODY_BYTES: u32 = ENDPOINT + 40;
    pub const RESPONSE_HEADERS: u32 = ENDPOINT + 44;
    pub const RESPONSE_BODY_BYTES: u32 = ENDPOINT + 52;
    pub const SETTLED: u32 = ENDPOINT + 56;
    pub const COMMIT_WITHIN: u32 = ENDPOINT + 64;
    pub const ATTEMPT_TIMEOUT: u32 = ENDPOINT + 72;
    pub const DEADLINE: u32 = ENDPOINT + 80;
    pub const MAX_ATTEMPTS: u32 = ENDPOINT + 88;
    pub const LIMITS: u32 = ENDPOINT + 96;
    pub const CONCURRENCY: u32 = ENDPOINT + 104;
    /// The size of an endpoint in bytes.
    pub const ENDPOINT_BYTES: u32 = 112;

    /// What `configure` returns: `ok`, or an error's text.
    pub const CONFIGURED: u32 = 0x300;

    /// The verdict.
    pub const VERDICT: u32 = 0x400;
    pub const CLASS: u32 = VERDICT;
    pub const BREAKER: u32 = VERDICT + 1;
    pub const NEXT: u32 = VERDICT + 8;
    pub const DELAY: u32 = VERDICT + 16;
    pub const PROBE_METHOD: u32 = VERDICT + 16;
    pub const PROBE_PATH: u32 = VERDICT + 24;
    pub const PROBE_HEADERS: u32 = VERDICT + 32;
    pub const PROBE_DELAY: u32 = VERDICT + 40;
    pub const STATUS: u32 = VERDICT + 16;
    pub const REPLACEMENT_HEADERS: u32 = VERDICT + 20;
    pub const REPLACEMENT_BODY: u32 = VERDICT + 28;
    pub const CLAIM: u32 = VERDICT + 48;
    pub const PAUSE: u32 = VERDICT + 64;
    pub const PAUSE_MS: u32 = VERDICT + 72;
    pub const REASON: u32 = VERDICT + 80;

    /// The area for text and lists.
    pub const TEXTS: u32 = 0x1000;
    /// The area that `cabi_realloc` allocates, to the end of the four pages.
    pub const HEAP: u32 = 0x2_0000;
}

/// The variants of `next`.
pub const RETRY: u8 = 1;
pub const VERIFY: u8 = 2;
pub const REPLACE: u8 = 3;

/// The classes of a verdict.
pub const NOT_APPLIED: u8 = 2;

/// A function body that never ends.
pub const SPIN: &str = "(loop $forever (br $forever)) unreachable";
/// A function body that traps.
pub const TRAP: &str = "unreachable";

/// Builds a policy.
#[derive(Debug, Clone)]
pub struct Guest {
    memory: Vec<(u32, Vec<u8>)>,
    texts: u32,
    describe: String,
    configure: String,
    decide: String,
    realloc: String,
    imports: String,
    more: String,
    pages: u32,
}

impl Guest {
    /// A correct policy: one endpoint for everything, and each verdict is `rejected`, deliver.
    pub fn new() -> Self {
        let mut guest = Self {
            memory: Vec::new(),
            texts: at::TEXTS,
            describe: returning(at::DESCRIPTION),
            configure: returning(at::CONFIGURED),
            decide: returning(at::VERDICT),
            // Allocates from a heap that only grows, which is enough for one request.
            realloc: "(local $given i32)
                (local.set $given (i32.and (i32.add (global.get $heap) (i32.const 15)) (i32.const -16)))
                (global.set $heap (i32.add (local.get $given) (local.get $size)))
                (local.get $given)"
                .to_owned(),
            imports: String::new(),
            more: String::new(),
            pages: 4,
        };
        guest.text(at::NAME, "hostile").text(at::VERSION, "0.1.0").word(at::ENDPOINTS, at::ENDPOINT);
        guest.word(at::ENDPOINTS + 4, 1).endpoint(at::ENDPOINT, "any", "/{*rest}");
        guest.byte(at::CLASS, 5).byte(at::BREAKER, 2).text(at::REASON, "as set");
        guest
    }

    /// An endpoint for every method, unsafe only if the method is.
    pub fn endpoint(&mut self, place: u32, name: &str, path: &str) -> &mut Self {
        self.text(place, name).text(place + 8, "*").text(place + 16, path).byte(place + 24, 0)
    }

    pub fn byte(&mut self, place: u32, byte: u8) -> &mut Self {
        self.put(place, vec![byte])
    }

    pub fn half(&mut self, place: u32, half: u16) -> &mut Self {
        self.put(place, half.to_le_bytes().to_vec())
    }

    pub fn word(&mut self, place: u32, word: u32) -> &mut Self {
        self.put(place, word.to_le_bytes().to_vec())
    }

    pub fn long(&mut self, place: u32, long: u64) -> &mut Self {
        self.put(place, long.to_le_bytes().to_vec())
    }

    /// Sets an option to a value.
    pub fn some(&mut self, place: u32, value: u32) -> &mut Self {
        self.byte(place, 1).word(place + 4, value)
    }

    /// Sets a pointer and a length, of text or another list.
    pub fn pair(&mut self, place: u32, pointer: u32, length: u32) -> &mut Self {
        self.word(place, pointer).word(place + 4, length)
    }

    /// Adds text, and sets the pointer and length at `place`.
    pub fn text(&mut self, place: u32, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        let (pointer, length) = (self.texts, u32::try_from(text.len()).unwrap());
        self.texts += length.next_multiple_of(8).max(8);
        self.put(pointer, text.to_vec()).pair(place, pointer, length)
    }

    /// Adds a list of headers, and sets the pointer and length at `place`.
    pub fn headers(&mut self, place: u32, headers: &[(&str, &str)]) -> &mut Self {
        let list = self.texts;
        self.texts += 16 * u32::try_from(headers.len()).unwrap();
        for (index, (name, value)) in (0..).zip(headers) {
            self.text(list + 16 * index, name).text(list + 16 * index + 8, value);
        }
        self.pair(place, list, u32::try_from(headers.len()).unwrap())
    }

    /// Adds a list of texts, and sets the pointer and length at `place`.
    pub fn texts(&mut self, place: u32, texts: &[&[u8]]) -> &mut Self {
        let (list, count) = (self.texts, u32::try_from(texts.len()).unwrap());
        self.texts += 8 * count;
        for (index, text) in (0..).zip(texts) {
            self.text(list + 8 * index, text);
        }
        self.pair(place, list, count)
    }

    /// Sets the memory's size in pages.
    pub fn pages(&mut self, pages: u32) -> &mut Self {
        self.pages = pages;
        self
    }

    /// Sets many endpoints, distinct or all equal.
    pub fn endpoints(&mut self, count: u32, distinct: bool) -> &mut Self {
        let list = 0x8000;
        for index in 0..count {
            let (name, path) =
                if distinct { (format!("e{index}"), format!("/e{index}")) } else { ("any".into(), "/a".into()) };
            self.endpoint(list + at::ENDPOINT_BYTES * index, &name, &path);
        }
        self.pages = 32;
        self.pair(at::ENDPOINTS, list, count)
    }

    /// Sets the verdict to a verification.
    pub fn probe(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> &mut Self {
        self.byte(at::CLASS, 4).byte(at::NEXT, VERIFY).text(at::PROBE_METHOD, method).text(at::PROBE_PATH, path);
        self.headers(at::PROBE_HEADERS, headers)
    }

    /// Sets the verdict to a replacement.
    pub fn replacement(&mut self, status: u16, headers: &[(&str, &str)]) -> &mut Self {
        self.byte(at::NEXT, REPLACE).half(at::STATUS, status).headers(at::REPLACEMENT_HEADERS, headers)
    }

    /// Sets the verdict to a retry after this delay.
    pub fn retry(&mut self, delay_ms: u64) -> &mut Self {
        self.byte(at::CLASS, NOT_APPLIED).byte(at::NEXT, RETRY).long(at::DELAY, delay_ms)
    }

    /// Replaces the body of `describe`.
    pub fn describe(&mut self, body: &str) -> &mut Self {
        body.clone_into(&mut self.describe);
        self
    }

    /// Adds code to `configure`, which still succeeds.
    pub fn configure(&mut self, body: &str) -> &mut Self {
        self.configure = format!("{body} {}", returning(at::CONFIGURED));
        self
    }

    /// Adds code before `decide` returns its verdict.
    pub fn decide(&mut self, body: &str) -> &mut Self {
        self.decide = format!("{body} {}", returning(at::VERDICT));
        self
    }

    /// Replaces the body of `cabi_realloc`, with the arguments `$size`, `$align`, `$old` and `$old_size`.
    pub fn realloc(&mut self, body: &str) -> &mut Self {
        body.clone_into(&mut self.realloc);
        self
    }

    /// Adds WASI imports as the module's first fields.
    pub fn importing(&mut self, imports: &str) -> &mut Self {
        self.imports.push_str(imports);
        self
    }

    /// Adds further fields of the module.
    pub fn more(&mut self, fields: &str) -> &mut Self {
        self.more.push_str(fields);
        self
    }

    fn put(&mut self, place: u32, bytes: Vec<u8>) -> &mut Self {
        self.memory.push((place, bytes));
        self
    }

    /// The core module as text.
    fn module(&self) -> String {
        let data = |(place, bytes): &(u32, Vec<u8>)| {
            let mut text = format!("(data (i32.const {place}) \"");
            for byte in bytes {
                let _ = write!(text, "\\{byte:02x}");
            }
            text + "\")\n"
        };
        format!(
            "(module
                {imports}
                (memory (export \"memory\") {pages})
                (global $heap (mut i32) (i32.const {heap}))
                (global $count (mut i32) (i32.const 0))
                {data}
                (func (export \"describe\") (result i32) {describe})
                (func (export \"configure\") (param i32 i32) (result i32) {configure})
                (func $decide (export \"decide\") (param i32) (result i32) {decide})
                (func (export \"cabi_realloc\")
                    (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
                    {realloc})
                {more})",
            imports = self.imports,
            pages = self.pages,
            heap = at::HEAP,
            data = self.memory.iter().map(data).collect::<String>(),
            describe = self.describe,
            configure = self.configure,
            decide = self.decide,
            realloc = self.realloc,
            more = self.more,
        )
    }

    /// Builds the component.
    pub fn build(&self) -> Vec<u8> {
        if self.imports.is_empty() {
            return component(&self.module(), &[("policy.wit", &contract())], "policy");
        }
        let contract = contract();
        let packages = [WASI, &[("policy.wit", &contract), ("guest.wit", GUEST)]].concat();
        component(&self.module(), &packages, "test:guest/guest")
    }
}

/// The parts of WASI 0.2 that the tests use.
const WASI: &[(&str, &str)] = &[
    ("io.wit", "package wasi:io@0.2.3; interface poll { resource pollable { block: func(); } }"),
    (
        "clocks.wit",
        "package wasi:clocks@0.2.3;
         interface monotonic-clock {
            use wasi:io/poll@0.2.3.{pollable};
            now: func() -> u64;
            subscribe-duration: func(when: u64) -> pollable;
         }
         interface wall-clock {
            record datetime { seconds: u64, nanoseconds: u32 }
            now: func() -> datetime;
         }",
    ),
    (
        "cli.wit",
        "package wasi:cli@0.2.3;
         interface environment {
            get-environment: func() -> list<tuple<string, string>>;
            get-arguments: func() -> list<string>;
         }
         interface exit { exit: func(status: result); }",
    ),
    (
        "filesystem.wit",
        "package wasi:filesystem@0.2.3;
         interface types { resource descriptor; }
         interface preopens {
            use types.{descriptor};
            get-directories: func() -> list<tuple<descriptor, string>>;
         }",
    ),
    (
        "sockets.wit",
        "package wasi:sockets@0.2.3;
         interface network {
            enum error-code {
                unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout, concurrency-conflict,
                not-in-progress, would-block, invalid-state, new-socket-limit, address-not-bindable, address-in-use,
                remote-unreachable, connection-refused, connection-reset, connection-aborted, datagram-too-large,
                name-unresolvable, temporary-resolver-failure, permanent-resolver-failure,
            }
            enum ip-address-family { ipv4, ipv6 }
         }
         interface tcp { resource tcp-socket; }
         interface tcp-create-socket {
            use network.{error-code, ip-address-family};
            use tcp.{tcp-socket};
            create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
         }",
    ),
    ("random.wit", "package wasi:random@0.2.3; interface random { get-random-u64: func() -> u64; }"),
];
/// A world that may import all of these.
const GUEST: &str = "package test:guest;
    world guest {
        include triage:policy/policy@0.1.0;
        import wasi:clocks/monotonic-clock@0.2.3;
        import wasi:clocks/wall-clock@0.2.3;
        import wasi:cli/environment@0.2.3;
        import wasi:cli/exit@0.2.3;
        import wasi:filesystem/preopens@0.2.3;
        import wasi:sockets/tcp-create-socket@0.2.3;
        import wasi:random/random@0.2.3;
    }";

fn returning(place: u32) -> String {
    format!("(i32.const {place})")
}

/// The policy contract as one WIT text.
fn contract() -> String {
    let types = include_str!("../../wit/types.wit");
    let world = include_str!("../../wit/policy.wit").replacen("package triage:policy@0.1.0;", "", 1);
    format!("{types}\n{world}")
}

/// Converts a core module's text to a component of a world.
pub fn component(module: &str, wit: &[(&str, &str)], world: &str) -> Vec<u8> {
    let mut core = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = Resolve::default();
    let packages: Vec<_> = wit.iter().map(|(name, text)| resolve.push_str(name, text).unwrap()).collect();
    let world = resolve.select_world(&packages, Some(world)).unwrap();
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&core).unwrap().encode().unwrap_or_else(|error| panic!("{error:?}"))
}

/// Converts a component's text to a component.
pub fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).unwrap_or_else(|error| panic!("{error}"))
}
