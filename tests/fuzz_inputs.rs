//! Every parser with invalid input: random bytes, and valid input with changes.

use proptest::{collection::vec, prelude::*, sample::Index};
use triage::fuzz_inputs::ALL;

/// Valid input for each parser, as a starting point.
fn good(name: &str) -> Vec<u8> {
    let file = |path: &str| std::fs::read(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    match name {
        "config" => b"[server]\nlisten = \"127.0.0.1:1\"\n[upstreams.a]\nbase_url = \"http://a\"\nlimits = []\n\
            [upstreams.a.defaults]\nlimits = [{ requests = 5, period = \"1m\", burst = 2 }]\ndeadline = \"5s\"\n"
            .to_vec(),
        "environment" => b"RETRY_MIN_WAIT=2\nTRIAGE_UPSTREAM=http://a\nTRIAGE__SERVER__DRAIN=5s\n".to_vec(),
        "key" => b"\"a \\\"b\\\\ c\"".to_vec(),
        "condition" => b"Patient?identifier=http%3A//a.example/mrn%7C1&name=a+b&birthdate=ge2000".to_vec(),
        "headers" => b"Wed, 21 Oct 2026 07:28:00 GMT".to_vec(),
        "path" => b"/a/%2e%2e/b//c".to_vec(),
        "authority" => b"[::1]:8080".to_vec(),
        "redirect" => b"5; url=\"http://up.example/v1/a?b#c\"".to_vec(),
        "rows" => b"name,address,phone\n\"A, B\",\"C\"\"D\",1\nE,F,\n".to_vec(),
        "cases" => file("tests/vectors/http-standard.csv"),
        "trace" => file("tests/vectors/http-standard.trace.jsonl"),
        "fhir" => b"<?xml version=\"1.0\"?>\n<OperationOutcome xmlns=\"http://hl7.org/fhir\"><!-- a --><issue>\
            <severity value=\"error\"/><code value='lock-error'/></issue></OperationOutcome>"
            .to_vec(),
        "component" => file("guest-policies/prebuilt/trap.wasm"),
        "kept" => {
            let part = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
            let head = [&[1, 2, 1][..], &[7; 32]].concat();
            let headers = [1_u32.to_be_bytes().to_vec(), part(b"authorization"), part(b"Bearer a")].concat();
            [head, part(b"POST"), part(b"/hospitals/"), headers, part(b"{\"name\":\"A\"}")].concat()
        }
        other => panic!("{other}: give it something good to begin from"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_parser_panics_on_random_bytes(bytes in vec(any::<u8>(), 0..300)) {
        for (_, parse) in ALL {
            parse(&bytes);
        }
    }

    #[test]
    fn no_parser_panics_on_random_text(text in "[ -~\n\"'=\\[\\]{}.,:;/%\\\\\u{0}-\u{ff}]{0,200}") {
        for (_, parse) in ALL {
            parse(text.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_parser_panics_on_a_good_input_with_a_part_changed(
        at in any::<Index>(), count in 0_usize..40, put in vec(any::<u8>(), 0..20), cut in any::<bool>()
    ) {
        for (name, parse) in ALL {
            let mut bytes = good(name);
            let from = at.index(bytes.len());
            let to = (from + count).min(bytes.len());
            bytes.splice(from..to, put.iter().copied());
            if cut {
                bytes.truncate(from + 1);
            }
            parse(&bytes);
        }
    }
}
