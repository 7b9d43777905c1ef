#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| data_channel::fuzzing::operations(data));
