//! See `quarry_iscsi::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    quarry_iscsi::fuzzing::session(input);
});
