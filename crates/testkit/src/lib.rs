//! Real servers, workloads, oracles and faults for tests.
