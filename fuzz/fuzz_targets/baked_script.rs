#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cdx::fuzzing::baked_script(data));
