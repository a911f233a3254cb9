"""What transformers' model tests need of each family: tiny configurations and inputs. Its own are not published."""
