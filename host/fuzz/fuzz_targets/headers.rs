#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| triage::fuzz_inputs::retry_after(bytes));
