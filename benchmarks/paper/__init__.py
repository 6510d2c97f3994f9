"""Every table and figure of Yang, Xu and Yu (2024), measured again beside the paper's own figures."""
