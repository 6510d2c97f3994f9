"""What the flip sets say: robustness, one contested decision, wrong labels, biased labels, two models compared."""
