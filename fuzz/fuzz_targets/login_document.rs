#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdx::fuzzing::login_document(data));
