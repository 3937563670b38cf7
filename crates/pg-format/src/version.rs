//! Which PostgreSQL wrote the bytes.

/// A supported major version. What differs between majors is data chosen by this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

/// Each major with its number, its `XLOG_PAGE_MAGIC` (`access/xlog_internal.h`) and its
/// `CATALOG_VERSION_NO` (`catalog/catversion.h`).
const VERSIONS: [(Version, u32, u16, u32); 5] = [
    (Version::V14, 14, 0xD10D, 202_107_181),
    (Version::V15, 15, 0xD110, 202_209_061),
    (Version::V16, 16, 0xD113, 202_307_071),
    (Version::V17, 17, 0xD116, 202_406_281),
    (Version::V18, 18, 0xD118, 202_506_291),
];

impl Version {
    /// The major version's number, such as 15.
    pub const fn major(self) -> u32 {
        VERSIONS[self as usize].1
    }

    /// The first two bytes of each page of the log.
    pub const fn page_magic(self) -> u16 {
        VERSIONS[self as usize].2
    }

    /// The format of the system catalogs, also part of a tablespace's directory name.
    pub const fn catalog(self) -> u32 {
        VERSIONS[self as usize].3
    }

    /// The version of that number, `None` where it is not supported.
    pub fn from_major(major: u32) -> Option<Self> {
        VERSIONS.iter().find(|row| row.1 == major).map(|row| row.0)
    }

    /// The version that writes this page magic.
    pub fn from_page_magic(magic: u16) -> Option<Self> {
        VERSIONS.iter().find(|row| row.2 == magic).map(|row| row.0)
    }

    /// The version with these system catalogs. Development snapshots are not supported.
    pub fn from_catalog(catalog: u32) -> Option<Self> {
        VERSIONS
            .iter()
            .find(|row| row.3 == catalog)
            .map(|row| row.0)
    }

    /// The directory that this version makes inside a tablespace, `PG_15_202209061`
    /// (`TABLESPACE_VERSION_DIRECTORY` in `common/relpath.h`).
    pub fn tablespace_directory(self) -> String {
        format!("PG_{}_{}", self.major(), self.catalog())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_found_by_what_names_it() {
        for (index, (version, major, magic, catalog)) in VERSIONS.into_iter().enumerate() {
            assert_eq!(version as usize, index, "the table is indexed by the enum");
            assert_eq!(Version::from_major(major), Some(version));
            assert_eq!(Version::from_page_magic(magic), Some(version));
            assert_eq!(Version::from_catalog(catalog), Some(version));
        }
        assert_eq!(Version::from_major(13), None);
        assert_eq!(Version::V15.tablespace_directory(), "PG_15_202209061");
    }
}
