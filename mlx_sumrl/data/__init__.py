"""Documents -> examples: sources, templates, article-only truncation, and posts made from a small grammar."""
