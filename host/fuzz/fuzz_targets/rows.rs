#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| triage::fuzz_inputs::rows(bytes));
