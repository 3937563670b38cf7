//! Agreement with a real PostgreSQL of each major: its own readers of the log, its control functions, and
//! the pages it writes.
//!
//! Each major has a module of tests, so that some can be run apart: `cargo test --test real_server v18`.

mod changes;
mod coverage;
mod directory;
mod fixture;
mod records;
mod server;
mod splits;
mod witness;

macro_rules! tests_of {
    ($($module:ident: $version:ident),*) => {$(
        mod $module {
            use borealis_pg_format::Version;

            use crate::{changes, coverage, directory, records, splits};

            const VERSION: Version = Version::$version;

            #[test]
            fn every_record_agrees_with_postgresqls_own_reader() {
                records::every_record_agrees(VERSION);
            }

            #[test]
            fn notable_events_are_found() {
                records::notable_events_are_found(VERSION);
            }

            #[test]
            fn every_page_that_changed_is_in_the_change_map() {
                changes::every_page_that_changed_is_in_the_change_map(VERSION);
            }

            #[test]
            fn a_shrunken_fork_has_a_limit_at_or_below_its_new_length() {
                changes::a_shrunken_fork_has_a_limit_at_or_below_its_new_length(VERSION);
            }

            #[test]
            fn untouched_relations_are_not_in_the_change_map() {
                changes::untouched_relations_are_not_in_the_change_map(VERSION);
            }

            #[test]
            fn any_split_and_any_cut_say_the_same() {
                splits::any_split_and_any_cut_say_the_same(VERSION);
            }

            #[test]
            fn damaged_log_is_reported_and_read_on() {
                splits::damaged_log_is_reported_and_read_on(VERSION);
            }

            #[test]
            fn the_control_file_agrees_with_the_server() {
                directory::the_control_file_agrees(VERSION);
            }

            #[test]
            fn every_page_of_a_stopped_server_is_valid() {
                directory::every_page_of_a_stopped_server_is_valid(VERSION);
            }

            #[test]
            fn every_file_of_a_data_directory_is_known() {
                directory::every_file_of_a_data_directory_is_known(VERSION);
            }

            #[test]
            fn a_label_of_the_server_is_read() {
                directory::a_label_of_the_server_is_read(VERSION);
            }

            #[test]
            fn every_listed_kind_of_record_is_emitted() {
                coverage::every_listed_kind_of_record_is_emitted(VERSION);
            }

            #[test]
            fn log_of_crashes_and_promotions_agrees_with_postgresqls_own_reader() {
                coverage::log_of_crashes_and_promotions_agrees(VERSION);
            }
        }
    )*};
}

tests_of!(v14: V14, v15: V15, v16: V16, v17: V17, v18: V18);
