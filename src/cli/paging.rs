//! Reads lists to their end, a page at a time.

use super::failure::Failure;

/// How many things to ask for at once: the most the agent gives.
pub const PAGE_SIZE: u32 = 1000;

/// Calls `fetch` with the token of each page, the first one empty, until there is no next page.
///
/// # Errors
/// The first one of `fetch`.
pub async fn all_pages<T>(
    mut fetch: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (page, next) = fetch(token).await?;
        all.extend(page);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_read_in_order_until_the_token_is_empty() {
        let all = all_pages(async |token| {
            Ok(match token.as_str() {
                "" => (vec![1, 2], "a".to_owned()),
                "a" => (vec![], "b".to_owned()),
                "b" => (vec![3], String::new()),
                other => panic!("unexpected token {other}"),
            })
        })
        .await;
        assert_eq!(all, Ok(vec![1, 2, 3]));
    }
}
